//! The migrations of the schema `tollgate`, in their order. One that was released is never changed.

use std::{borrow::Cow, future::Future, pin::Pin};

use sqlx::{
    error::BoxDynError,
    migrate::{Migration, MigrationSource, MigrationType},
};

/// Number, name and statements.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (4, "billing", include_str!("migrations/0004_billing.sql")),
    (5, "invoices", include_str!("migrations/0005_invoices.sql")),
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
