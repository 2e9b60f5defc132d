use super::super::{HandlerError, LedgerError, NotifyError};
use crate::{
    auth::KeyStoreError,
    id::InvalidId,
    identity::{KeysError, TenantsError},
    tenant::TenantStoreError,
};

/// An event's consequences could not be drawn. Each error about an event names the field.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// A field that is needed is missing or empty.
    #[error("the event has no `{field}`")]
    MissingField {
        /// The field's path.
        field: &'static str,
    },
    /// No checkout has told of the customer, and the provisioner was told to refuse such ones.
    #[error("`{field}` names the customer `{customer}`, of whom no checkout has told")]
    UnknownCustomer {
        /// The field's path.
        field: &'static str,
        /// The customer.
        customer: Box<str>,
    },
    /// A price is in no plan.
    #[error("`{field}` is `{price}`, which is in no plan: name it with `price`")]
    UnknownPrice {
        /// The field's path.
        field: &'static str,
        /// The price.
        price: Box<str>,
    },
    /// A subscription has a status that this version of the crate does not know.
    #[error("`{field}` is no status that is known")]
    UnknownStatus {
        /// The field's path.
        field: &'static str,
    },
    /// The event is in a currency that the service does not sell in.
    #[error("`{field}` is `{found}`, and plans are sold in {expected}")]
    OtherCurrency {
        /// The field's path.
        field: &'static str,
        /// The currencies that the service sells in.
        expected: String,
        /// The event's.
        found: Box<str>,
    },
    /// A checkout's tenant has a name that no tenant can have.
    #[error("`{field}` gives no name for a tenant")]
    InvalidTenant {
        /// The field's path.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidId,
    },
    /// A customer who has bought for one tenant buys for another one.
    #[error(
        "`{field}` gives another tenant than earlier checkouts of the customer `{customer}`: make a customer for each tenant"
    )]
    OtherTenant {
        /// The field's path.
        field: &'static str,
        /// The customer.
        customer: Box<str>,
    },
    /// A key was not issued.
    #[error("the key was not issued")]
    Keys(#[from] KeysError),
    /// A tenant was not changed.
    #[error("the tenant was not changed")]
    Tenants(#[from] TenantsError),
    /// The accounts could not be read or written.
    #[error("the account was not changed")]
    Accounts(#[from] LedgerError),
    /// A notice was not taken.
    #[error("nobody could be told")]
    Notify(#[from] NotifyError),
    /// The provider could not be asked which of two events is newer.
    #[error("the provider was not asked")]
    Refetch(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ProvisionError {
    /// The field of the event that it is about.
    #[must_use]
    pub const fn field(&self) -> Option<&'static str> {
        match self {
            Self::MissingField { field }
            | Self::UnknownCustomer { field, .. }
            | Self::UnknownPrice { field, .. }
            | Self::UnknownStatus { field }
            | Self::OtherCurrency { field, .. }
            | Self::InvalidTenant { field, .. }
            | Self::OtherTenant { field, .. } => Some(field),
            _ => None,
        }
    }

    /// Whether it has nothing to do with the event, so that the same will do later.
    #[must_use]
    pub const fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Accounts(LedgerError::Unavailable(_) | LedgerError::Conflict)
                | Self::Keys(
                    KeysError::Store(KeyStoreError::Unavailable(_))
                        | KeysError::TenantStore(
                            TenantStoreError::Unavailable(_) | TenantStoreError::Conflict
                        )
                )
                | Self::Tenants(TenantsError::Store(
                    TenantStoreError::Unavailable(_) | TenantStoreError::Conflict
                ))
                | Self::Notify(_)
                | Self::Refetch(_)
        )
    }
}

impl From<ProvisionError> for HandlerError {
    fn from(error: ProvisionError) -> Self {
        if error.is_temporary() {
            Self::Unavailable(error.into())
        } else {
            Self::Failed(error.into())
        }
    }
}
