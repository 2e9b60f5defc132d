-- Aggregates that are kept as events come in. Each holds the ids that it counts, so that an event which is delivered
-- again, in whatever batch, counts once: a union of sets changes nothing when a part of it comes twice.
CREATE TABLE IF NOT EXISTS usage_requests_per_hour_ids
(
    hour DateTime('UTC'),
    tenant String,
    api LowCardinality(String),
    ids AggregateFunction(uniqExact, FixedString(32))
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (tenant, api, hour);

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_requests_per_hour_feed TO usage_requests_per_hour_ids AS
SELECT toStartOfHour(toDateTime(time, 'UTC')) AS hour, tenant, api, uniqExactState(id) AS ids
FROM usage_events
WHERE part_of = ''
GROUP BY hour, tenant, api;

CREATE VIEW IF NOT EXISTS usage_requests_per_hour AS
SELECT hour, tenant, api, uniqExactMerge(ids) AS requests
FROM usage_requests_per_hour_ids
GROUP BY hour, tenant, api;

CREATE TABLE IF NOT EXISTS usage_errors_by_endpoint_ids
(
    hour DateTime('UTC'),
    tenant String,
    api LowCardinality(String),
    method LowCardinality(String),
    route LowCardinality(String),
    ids AggregateFunction(uniqExact, FixedString(32)),
    error_ids AggregateFunction(uniqExactIf, FixedString(32), UInt8)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (tenant, api, route, method, hour);

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_errors_by_endpoint_feed TO usage_errors_by_endpoint_ids AS
SELECT
    toStartOfHour(toDateTime(time, 'UTC')) AS hour,
    tenant,
    api,
    method,
    route,
    uniqExactState(id) AS ids,
    uniqExactIfState(id, toUInt8(outcome IN ('failed', 'panicked'))) AS error_ids
FROM usage_events
WHERE part_of = ''
GROUP BY hour, tenant, api, method, route;

CREATE VIEW IF NOT EXISTS usage_errors_by_endpoint AS
SELECT
    hour,
    tenant,
    api,
    method,
    route,
    uniqExactMerge(ids) AS requests,
    uniqExactIfMerge(error_ids) AS errors,
    errors / requests AS error_rate
FROM usage_errors_by_endpoint_ids
GROUP BY hour, tenant, api, method, route;

-- Latencies by their seven leading bits, so that a quantile is at most 1.6 % below the true one.
CREATE TABLE IF NOT EXISTS usage_latency_daily_ids
(
    day Date,
    tenant String,
    api LowCardinality(String),
    route LowCardinality(String),
    latency_micros UInt64,
    ids AggregateFunction(uniqExact, FixedString(32))
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (tenant, api, route, day, latency_micros);

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_latency_daily_feed TO usage_latency_daily_ids AS
WITH
    usage_events.latency_micros AS exact,
    toUInt8(greatest(toInt16(floor(log2(greatest(exact, 1)))) - 6, 0)) AS n_bits
SELECT
    toDate(time) AS day,
    tenant,
    api,
    route,
    bitShiftLeft(bitShiftRight(exact, n_bits), n_bits) AS latency_micros,
    uniqExactState(id) AS ids
FROM usage_events
WHERE part_of = ''
GROUP BY day, tenant, api, route, latency_micros;

CREATE VIEW IF NOT EXISTS usage_latency_daily AS
SELECT
    day,
    tenant,
    api,
    route,
    sum(n) AS requests,
    quantilesExactWeighted(0.5, 0.95, 0.99)(latency_micros, n) AS quantiles,
    quantiles[1] AS p50_micros,
    quantiles[2] AS p95_micros,
    quantiles[3] AS p99_micros
FROM
(
    SELECT day, tenant, api, route, latency_micros, uniqExactMerge(ids) AS n
    FROM usage_latency_daily_ids
    GROUP BY day, tenant, api, route, latency_micros
)
GROUP BY day, tenant, api, route;
