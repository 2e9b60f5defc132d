//! The migrations of the schema `tollgate`, in their order. One that was released is never changed.

use std::{borrow::Cow, future::Future, pin::Pin};

use sqlx::{
    error::BoxDynError,
    migrate::{Migration, MigrationSource, MigrationType},
};

/// Number, name and statements.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (
        1,
        "keys and tenants",
        include_str!("migrations/0001_keys_and_tenants.sql"),
    ),
    (
        2,
        "usage events",
        include_str!("migrations/0002_usage_events.sql"),
    ),
    (
        3,
        "usage minutes",
        include_str!("migrations/0003_usage_minutes.sql"),
    ),
    (4, "billing", include_str!("migrations/0004_billing.sql")),
    (5, "invoices", include_str!("migrations/0005_invoices.sql")),
    (
        6,
        "usage insight",
        include_str!("migrations/0006_usage_insight.sql"),
    ),
];

#[derive(Debug)]
pub(super) struct Embedded;

impl MigrationSource<'static> for Embedded {
    fn resolve(
        self,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Migration>, BoxDynError>> + Send + 'static>> {
        Box::pin(std::future::ready(Ok(all())))
    }
}

/// The number of the last one.
#[cfg(feature = "usage")]
pub(super) fn last() -> i64 {
    MIGRATIONS.last().map_or(0, |(number, ..)| *number)
}

pub(super) fn all() -> Vec<Migration> {
    MIGRATIONS
        .iter()
        .map(|(number, name, sql)| {
            let kind = MigrationType::Simple;
            Migration::new(
                *number,
                Cow::Borrowed(name),
                kind,
                Cow::Borrowed(sql),
                false,
            )
        })
        .collect()
}
