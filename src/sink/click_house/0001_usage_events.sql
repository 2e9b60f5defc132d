-- Every event as it was delivered. One that is delivered again is a second row until parts are merged: read with FINAL,
-- by way of usage_events_once, or count by uniqExact(id). The window tells a repeated insert by its token.
CREATE TABLE IF NOT EXISTS usage_events
(
    id FixedString(32),
    part_of String,
    schema UInt16,
    source LowCardinality(String),
    time DateTime64(6, 'UTC'),
    day Date MATERIALIZED toDate(time),
    tenant String,
    key_id String,
    plan LowCardinality(String),
    environment LowCardinality(String),
    api LowCardinality(String),
    route LowCardinality(String),
    method LowCardinality(String),
    status UInt16,
    grpc_status Nullable(UInt8),
    outcome LowCardinality(String),
    refused LowCardinality(String),
    latency_micros UInt64,
    request_bytes UInt64,
    response_bytes UInt64,
    quantities Map(String, UInt64),
    overage Bool,
    waived Bool,
    deprecated Bool,
    request_id String,
    trace_id String,
    cost_nanos Nullable(UInt64),
    country LowCardinality(String)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (tenant, day, id)
SETTINGS non_replicated_deduplication_window = 1000;

-- Every event once.
CREATE VIEW IF NOT EXISTS usage_events_once AS
SELECT *, day FROM usage_events FINAL;

-- What is to be paid for, by tenant and day. Sums are wider than what is added up, so that none wraps.
CREATE VIEW IF NOT EXISTS usage_billed_daily AS
SELECT
    day,
    tenant,
    plan,
    api,
    countIf(part_of = '') AS calls,
    sum(toUInt128(request_bytes)) AS request_bytes,
    sum(toUInt128(response_bytes)) AS response_bytes,
    sumMap(mapApply((name, amount) -> (name, toUInt128(amount)), quantities)) AS quantities
FROM usage_events FINAL
WHERE environment = 'live' AND NOT waived AND outcome IN ('served', 'aborted')
GROUP BY day, tenant, plan, api;
