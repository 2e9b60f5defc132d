use std::time::Duration;

/// Why a request was not authenticated.
///
/// Only [`reason`](Self::reason) tells them apart, in metrics and logs. What the caller is told is made by
/// [`Challenge::problem`](super::Challenge::problem): one answer for every credential that does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuthRefusal {
    /// No credential was sent.
    Missing,
    /// Two credentials that differ, or one header twice.
    Ambiguous,
    /// The credential has the wrong shape, alphabet, length or checksum.
    Malformed,
    /// Nobody knows the credential, or the key that a token names.
    Unknown,
    /// The token's signature is not its issuer's.
    BadSignature,
    /// The token is of an issuer that is not trusted.
    WrongIssuer,
    /// The token is meant for another service.
    WrongAudience,
    /// The token does not count yet.
    NotYetValid,
    /// The credential has expired.
    Expired,
    /// The credential was revoked.
    Revoked,
    /// A test credential where only live ones are served, or the other way round.
    WrongEnvironment,
    /// The credential may not be used from this address.
    AddressNotAllowed,
    /// The credential names a tenant that does not exist.
    TenantUnknown,
    /// The tenant's plan is not in this process's catalog.
    PlanUnknown,
    /// The store that knows the credential does not answer.
    StoreUnavailable,
    /// Too many attempts from this address failed.
    TooManyFailures {
        /// When the next attempt is looked at.
        retry_after: Duration,
    },
}

impl AuthRefusal {
    /// The reason as a metric label and in logs: one of a closed set, never shown to the caller.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Ambiguous => "ambiguous",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::BadSignature => "bad_signature",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::WrongEnvironment => "wrong_environment",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::TenantUnknown => "tenant_unknown",
            Self::PlanUnknown => "plan_unknown",
            Self::StoreUnavailable => "store_unavailable",
            Self::TooManyFailures { .. } => "too_many_failures",
        }
    }

    /// Whether the refusal counts towards the [`FailureLimit`](super::FailureLimit) of the caller's address.
    ///
    /// Every credential that does not work counts the same, so that the limit tells nobody an unknown key
    /// from a revoked one. A request without a credential guesses nothing, and what is the service's own
    /// fault is not held against the caller.
    #[must_use]
    pub const fn counts_as_failure(&self) -> bool {
        matches!(
            self,
            Self::Malformed
                | Self::Unknown
                | Self::BadSignature
                | Self::WrongIssuer
                | Self::WrongAudience
                | Self::NotYetValid
                | Self::Expired
                | Self::Revoked
                | Self::TenantUnknown
        )
    }
}
