//! Events on the disk: appended before they are delivered, read back after a kill.
//!
//! One directory holds a lock, segments that are only appended to, a cursor and the dead letters. The order of what is
//! written is what makes it safe: a batch is appended and then offered; the sink's last word moves the cursor; only
//! what is behind the cursor on the disk is deleted. A kill between any two of these offers a batch again, and loses
//! none.

mod cursor;
mod error;
mod open;
mod read;
mod segment;
mod store;

pub(super) use self::{
    error::SpoolError,
    open::Opened,
    store::{Limits, Secured, Spool},
};
