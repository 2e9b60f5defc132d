//! Whether the table that is there counts an event once.

use clickhouse::{Client, Row};
use serde::Deserialize;

use super::ClickHouseStartError;

/// The table that events are written to.
pub(super) const EVENTS: &str = "usage_events";

#[derive(Debug, Row, Deserialize)]
struct Table {
    engine: String,
    sorting_key: String,
    engine_full: String,
}

/// Reads the table's engine, sorting key and window.
pub(super) async fn check(client: &Client) -> Result<(), ClickHouseStartError> {
    let table = client
        .query(
            "SELECT engine, sorting_key, engine_full FROM system.tables \
             WHERE database = currentDatabase() AND name = ?",
        )
        .bind(EVENTS)
        .fetch_optional::<Table>()
        .await
        .map_err(ClickHouseStartError::unavailable)?;
    let Some(table) = table else {
        return Err(ClickHouseStartError::Missing);
    };
    match fault(&table.engine, &table.sorting_key, &table.engine_full) {
        Some(reason) => Err(ClickHouseStartError::NotIdempotent { reason }),
        None => Ok(()),
    }
}

/// Why a table would keep an event twice for ever, or drop one of two events.
fn fault(engine: &str, sorting_key: &str, definition: &str) -> Option<&'static str> {
    if !engine.ends_with("ReplacingMergeTree") {
        return Some(
            "its engine keeps whatever is inserted, and an event may come again after the window for tokens: \
             make it a ReplacingMergeTree",
        );
    }
    if !sorting_key.split(',').any(|column| column.trim() == "id") {
        return Some(
            "it replaces events of others, as `id` is not in its sorting key: ORDER BY (tenant, day, id)",
        );
    }
    let is_replicated = engine != "ReplacingMergeTree";
    let (name, unset) = if is_replicated {
        ("replicated_deduplication_window", 1)
    } else {
        ("non_replicated_deduplication_window", 0)
    };
    if window(definition, name).unwrap_or(unset) == 0 {
        return Some(
            "a repeated insert is a second one: ALTER TABLE usage_events MODIFY SETTING \
             non_replicated_deduplication_window = 1000 (replicated_deduplication_window for a replicated table)",
        );
    }
    None
}

/// The value of a setting in a table's definition.
fn window(definition: &str, name: &str) -> Option<u64> {
    let (_, settings) = definition.split_once("SETTINGS ")?;
    settings.split(',').find_map(|setting| {
        let (known, value) = setting.split_once('=')?;
        (known.trim() == name).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_refused_when_it_may_count_twice() {
        const WINDOW: &str = "ReplacingMergeTree ORDER BY (tenant, day, id) SETTINGS index_granularity = 8192, \
                              non_replicated_deduplication_window = 1000";
        let key = "tenant, day, id";
        assert_eq!(fault("ReplacingMergeTree", key, WINDOW), None);
        assert_eq!(fault("ReplicatedReplacingMergeTree", key, "x"), None);
        assert_eq!(fault("SharedReplacingMergeTree", key, "x"), None);
        for (engine, key, definition) in [
            ("MergeTree", key, WINDOW),
            ("AggregatingMergeTree", key, WINDOW),
            ("Log", "", ""),
            ("ReplacingMergeTree", "tenant, day", WINDOW),
            ("ReplacingMergeTree", "tenant, client_id", WINDOW),
            (
                "ReplacingMergeTree",
                key,
                "SETTINGS index_granularity = 8192",
            ),
            ("ReplacingMergeTree", key, ""),
            (
                "ReplicatedReplacingMergeTree",
                key,
                "SETTINGS replicated_deduplication_window = 0",
            ),
        ] {
            assert!(fault(engine, key, definition).is_some(), "{engine} {key}");
        }
    }
}
