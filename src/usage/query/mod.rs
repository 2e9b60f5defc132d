//! Questions to the minutes of usage in PostgreSQL.

mod answer;
mod billed;
mod days;
mod questions;
mod segments;
mod sql;

pub use self::{
    answer::{CountryUsage, RouteUsage, TenantTrend, UsagePoint, UsageQueryError},
    days::MadeDays,
    questions::PostgresUsage,
    segments::Step,
};
