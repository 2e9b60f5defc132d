//! What a tenant may do, by the state of its payments. Pure: the time is an argument.

use http::Method;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// The state of a tenant's access, as it was last written.
///
/// Moves that time alone brings about are evaluated when the state is read, by [`AccessState::at`], so that
/// no scheduled job is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AccessState {
    /// Everything passes.
    #[default]
    Active,
    /// A payment failed; everything passes until the deadline, with a header that says so.
    Grace {
        /// When grace ends and access becomes read-only.
        until: Timestamp,
        /// When read-only access in turn becomes suspended; never when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        suspend_at: Option<Timestamp>,
    },
    /// GET, HEAD and OPTIONS pass; the rest is answered 402.
    ReadOnly {
        /// When access becomes suspended; never when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        suspend_at: Option<Timestamp>,
    },
    /// Everything is answered 402.
    Suspended,
    /// The account has ended; everything is answered 401.
    Closed,
}

/// What a state lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// The call may pass.
    Full,
    /// The call may pass; the answer says that a payment is due.
    Grace,
    /// The method would change something, and access is read-only.
    ReadOnlyRefused,
    /// The method only reads, and access is read-only.
    ReadOnlyAllowed,
    /// Refused until a payment is made.
    Suspended,
    /// Refused: the account has ended.
    Closed,
}

impl AccessState {
    /// The state at `now`: grace that is over has become read-only, and read-only access suspended.
    ///
    /// A deadline that has been reached has passed: at `until` itself access is read-only.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        match self {
            Self::Grace { until, suspend_at } if now >= until => {
                Self::ReadOnly { suspend_at }.at(now)
            }
            Self::ReadOnly {
                suspend_at: Some(deadline),
            } if now >= deadline => Self::Suspended,
            state => state,
        }
    }

    /// What the state lets `method` do at `now`.
    #[must_use]
    pub fn access(self, method: &Method, now: Timestamp) -> Access {
        match self.at(now) {
            Self::Active => Access::Full,
            Self::Grace { .. } => Access::Grace,
            Self::ReadOnly { .. } if is_read(method) => Access::ReadOnlyAllowed,
            Self::ReadOnly { .. } => Access::ReadOnlyRefused,
            Self::Suspended => Access::Suspended,
            Self::Closed => Access::Closed,
        }
    }

    /// The name that headers and logs show: `active`, `grace`, `read-only`, `suspended` or `closed`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Grace { .. } => "grace",
            Self::ReadOnly { .. } => "read-only",
            Self::Suspended => "suspended",
            Self::Closed => "closed",
        }
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}
