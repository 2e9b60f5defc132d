//! Rules as they are written in JSON or TOML.

use std::{num::NonZeroU32, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    kinds::{Concurrency, Quota, Rate, Window},
    rule::{Action, Algorithm, Edge, OnStoreFailure, Period, Rule, Scope, Unit},
    text::Length,
};

/// A rule's table. Which fields a kind takes is checked when it becomes a [`Rule`], so that the error names
/// the field: a tagged enum would lose it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename = "Rule", deny_unknown_fields)]
struct Document {
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    per: Option<Per>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    burst: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<Length>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cells: Option<NonZeroU32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    edge: Option<EdgeText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    period: Option<PeriodText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<Length>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    route: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "is_default")]
    scope: Scope,
    #[serde(default, skip_serializing_if = "is_default")]
    unit: Unit,
    #[serde(default, skip_serializing_if = "is_default")]
    action: Action,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    thresholds: Vec<u8>,
    #[serde(default, skip_serializing_if = "is_default")]
    on_store_failure: OnStoreFailure,
    #[serde(default, skip_serializing_if = "is_default")]
    shadow: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Rate,
    Window,
    Quota,
    Concurrency,
    Unlimited,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Window => "window",
            Self::Quota => "quota",
            Self::Concurrency => "concurrency",
            Self::Unlimited => "unlimited",
        }
    }

    /// What another kind calls by the field, this one calls by another name.
    fn instead_of(self, field: &str) -> &'static str {
        let is_length = matches!(field, "per" | "window" | "period");
        match self {
            Self::Rate if is_length => ": write `per`, such as `per = \"second\"`",
            Self::Window if is_length => ": write `window`, such as `window = \"1h\"`",
            Self::Quota if is_length => ": write `period`, such as `period = \"month\"`",
            _ => "",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EdgeText {
    Strict,
    Smooth,
    Exact,
}

/// A length of time, or the name of a period with what is wrong about it here: a field that the kind does not take
/// is told before what stands in it.
#[derive(Debug)]
struct Per(Result<Length, String>);

impl<'de> Deserialize<'de> for Per {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match (text.parse(), text.parse::<Period>()) {
            (Ok(length), _) => Ok(Self(Ok(length))),
            (Err(_), Ok(_)) => Ok(Self(Err(format!(
                "`per = {text:?}` is no fixed length: write one, such as `30d`, or a rule of kind `quota` with \
                 `period = {text:?}`"
            )))),
            (Err(wrong), Err(_)) => Err(D::Error::custom(wrong)),
        }
    }
}

/// A period, or a length of time with what is wrong about it here.
#[derive(Debug)]
struct PeriodText(Result<Period, String>);

impl<'de> Deserialize<'de> for PeriodText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match (text.parse(), text.parse::<Length>()) {
            (Ok(period), _) => Ok(Self(Ok(period))),
            (Err(wrong), Ok(_)) => Ok(Self(Err(format!(
                "{wrong}, or a rule of kind `window` for a length"
            )))),
            (Err(wrong), Err(_)) => Err(D::Error::custom(wrong)),
        }
    }
}

impl Serialize for Per {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().ok().serialize(serializer)
    }
}

impl Serialize for PeriodText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().ok().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Rule {
    /// Reads a rule from a table.
    ///
    /// - `kind`: `rate`, `window`, `quota`, `concurrency` or `unlimited`. Also the rule's `name`, unless given.
    /// - `limit`: units; needed by every kind but `unlimited`.
    /// - `per` (`rate`, needed): `second`, `minute`, `hour`, `day` or a length such as `10s` or `500ms`.
    /// - `burst` (`rate`): as `limit` unless given.
    /// - `window` (`window`, needed): a length; `cells`: 10 unless given; `edge`: `strict` unless given,
    ///   `smooth` or `exact` (the log).
    /// - `period` (`quota`, needed): `hour`, `day`, `month` or `billing`; `time_zone`: UTC unless given.
    /// - `lease` (`concurrency`): `1m` unless given.
    /// - `route`: the template of the one route whose calls count, such as `/v1/chat`; every route unless given.
    /// - `scope` (`tenant`, `key`, `route`, `address` or a name of yours), `unit` (`requests`, `bytes` or a name of
    ///   yours, such as `tokens`), `action` (`refuse`, `warn`, `overage`), `thresholds` (percentages),
    ///   `on_store_failure` (`local`, `allow`, `deny`) and `shadow` (true or false), for every kind.
    ///
    /// A length is a whole number with `us`, `ms`, `s`, `m`, `h` or `d`, or the name of one unit. A field that
    /// the kind does not take is an error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let document = Document::deserialize(deserializer)?;
        document.check_fields().map_err(D::Error::custom)?;
        let kind = document.kind;
        let needed = |field: &'static str| {
            D::Error::custom(format_args!(
                "a rule of kind `{}` needs the field `{field}`",
                kind.as_str()
            ))
        };
        let limit = document.limit.ok_or_else(|| needed("limit"));
        let rule = match kind {
            Kind::Rate => {
                let limit = limit?;
                let per = document.per.ok_or_else(|| needed("per"))?;
                let Length(period) = per.0.map_err(D::Error::custom)?;
                Rate::per(limit, period)
                    .burst(document.burst.unwrap_or(limit))
                    .into()
            }
            Kind::Window => {
                let Length(length) = document.window.ok_or_else(|| needed("window"))?;
                let mut window = Window::new(limit?, length);
                if let Some(cells) = document.cells {
                    window = window.cells(cells);
                }
                match document.edge {
                    Some(EdgeText::Smooth) => window.smooth(),
                    Some(EdgeText::Exact) => window.exact_log(),
                    Some(EdgeText::Strict) | None => window,
                }
                .into()
            }
            Kind::Quota => {
                let period = document.period.ok_or_else(|| needed("period"))?;
                let period = period.0.map_err(D::Error::custom)?;
                let quota = Quota::new(limit?, period);
                match document.time_zone {
                    Some(zone) => quota.time_zone(zone),
                    None => quota,
                }
                .into()
            }
            Kind::Concurrency => {
                let gauge = Concurrency::new(limit?);
                match document.lease {
                    Some(Length(lease)) => gauge.lease(lease),
                    None => gauge,
                }
                .into()
            }
            Kind::Unlimited => Self::unlimited(),
        };
        Ok(Self {
            name: document.name.unwrap_or(rule.name),
            algorithm: rule.algorithm,
            route: document.route,
            scope: document.scope,
            unit: document.unit,
            action: document.action,
            thresholds: document.thresholds.into(),
            on_store_failure: document.on_store_failure,
            shadow: document.shadow,
        })
    }
}

impl Document {
    /// Says which field is given that the kind does not take.
    fn check_fields(&self) -> Result<(), String> {
        let exact = self.edge == Some(EdgeText::Exact);
        let given = [
            ("limit", self.limit.is_some(), self.kind != Kind::Unlimited),
            ("per", self.per.is_some(), self.kind == Kind::Rate),
            ("burst", self.burst.is_some(), self.kind == Kind::Rate),
            ("window", self.window.is_some(), self.kind == Kind::Window),
            (
                "cells",
                self.cells.is_some(),
                self.kind == Kind::Window && !exact,
            ),
            ("edge", self.edge.is_some(), self.kind == Kind::Window),
            ("period", self.period.is_some(), self.kind == Kind::Quota),
            (
                "time_zone",
                self.time_zone.is_some(),
                self.kind == Kind::Quota,
            ),
            (
                "lease",
                self.lease.is_some(),
                self.kind == Kind::Concurrency,
            ),
        ];
        match given.iter().find(|(_, is_given, fits)| *is_given && !fits) {
            Some((field, ..)) if exact && *field == "cells" => {
                Err("an exact window has no cells: leave out the field `cells`".to_owned())
            }
            Some((field, ..)) => Err(format!(
                "a rule of kind `{}` does not take the field `{field}`{}",
                self.kind.as_str(),
                self.kind.instead_of(field),
            )),
            None => Ok(()),
        }
    }

    fn empty(kind: Kind, rule: &Rule) -> Self {
        Self {
            kind,
            name: (rule.name() != kind.as_str()).then(|| Arc::clone(&rule.name)),
            limit: None,
            per: None,
            burst: None,
            window: None,
            cells: None,
            edge: None,
            period: None,
            time_zone: None,
            lease: None,
            route: rule.route.clone(),
            scope: rule.scope.clone(),
            unit: rule.unit.clone(),
            action: rule.action,
            thresholds: rule.thresholds.to_vec(),
            on_store_failure: rule.on_store_failure,
            shadow: rule.shadow,
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let document = match &self.algorithm {
            Algorithm::TokenBucket { n, period, burst } => Document {
                limit: Some(*n),
                per: Some(Per(Ok(Length(*period)))),
                burst: (burst != n).then_some(*burst),
                ..Document::empty(Kind::Rate, self)
            },
            Algorithm::SlidingWindow {
                limit,
                window,
                cells,
                edge,
            } => Document {
                limit: Some(*limit),
                window: Some(Length(*window)),
                cells: Some(*cells),
                edge: Some(match edge {
                    Edge::Strict => EdgeText::Strict,
                    Edge::Smooth => EdgeText::Smooth,
                }),
                ..Document::empty(Kind::Window, self)
            },
            Algorithm::SlidingLog { limit, window } => Document {
                limit: Some(*limit),
                window: Some(Length(*window)),
                edge: Some(EdgeText::Exact),
                ..Document::empty(Kind::Window, self)
            },
            Algorithm::Quota {
                limit,
                period,
                time_zone,
            } => Document {
                limit: Some(*limit),
                period: Some(PeriodText(Ok(*period))),
                time_zone: time_zone.clone(),
                ..Document::empty(Kind::Quota, self)
            },
            Algorithm::Concurrency { limit, lease } => Document {
                limit: Some(*limit),
                lease: Some(Length(*lease)),
                ..Document::empty(Kind::Concurrency, self)
            },
            Algorithm::Unlimited => Document::empty(Kind::Unlimited, self),
        };
        document.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use serde_json::json;

    fn read(document: &serde_json::Value) -> Result<Rule, String> {
        serde_json::from_value(document.clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_rule_is_read_as_people_write_it() {
        let rate = read(&json!({"kind": "rate", "limit": 100, "per": "minute"})).unwrap();
        assert_eq!(rate, Rate::per_minute(100).into());
        let rate = json!({
            "kind": "rate", "name": "tokens", "limit": 7, "per": "10s", "burst": 20,
            "scope": "workspace", "unit": "tokens", "route": "/v1/chat", "action": "overage",
            "thresholds": [80, 90], "on_store_failure": "deny", "shadow": true,
        });
        let expected = Rate::per(7, Duration::from_secs(10))
            .burst(20)
            .named("tokens")
            .route("/v1/chat")
            .scope(Scope::Custom("workspace".into()))
            .unit(Unit::custom("tokens"))
            .overage()
            .thresholds([80, 90])
            .on_store_failure(OnStoreFailure::Deny)
            .shadow();
        assert_eq!(read(&rate).unwrap(), expected);
        assert_eq!(serde_json::to_value(&expected).unwrap(), rate);
        let toml = "kind = 'quota'\nlimit = 1000\nperiod = 'billing'\ntime_zone = 'Europe/Berlin'";
        let quota: Rule = toml::from_str(toml).unwrap();
        assert_eq!(
            quota,
            Quota::per_billing_period(1_000)
                .time_zone("Europe/Berlin")
                .into()
        );
    }

    #[test]
    fn every_rule_comes_back_as_it_was() {
        let cells = NonZeroU32::new(7).unwrap();
        let second = Duration::from_secs(1);
        let rules: Vec<Rule> = vec![
            Rate::per(1, Duration::from_micros(1)).into(),
            Rate::per_second(u64::MAX).burst(1).into(),
            Rate::per(3, Duration::new(3, 141_592_653)).into(),
            Rate::per(3, Duration::MAX).into(),
            Rate::per(3, Duration::ZERO).into(),
            Window::new(10, second).cells(cells).smooth().into(),
            Window::new(10, second * 90).into(),
            Window::new(10, second).exact_log().into(),
            Quota::hourly(1).scope(Scope::Route),
            Quota::daily(1).scope(Scope::Address).unit(Unit::Bytes),
            Quota::monthly(0).scope(Scope::Key).warn(),
            Concurrency::new(5).into(),
            Rule::unlimited().on_store_failure(OnStoreFailure::Allow),
        ];
        let text = serde_json::to_string(&rules).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Rule>>(&text).unwrap(), rules);
    }

    #[test]
    fn an_error_names_the_field() {
        let error = |document| read(&document).unwrap_err();
        let names = |document, field: &str| {
            let error = error(document);
            assert!(error.contains(field), "{error}");
        };
        names(json!({"kind": "rate", "limit": 1}), "`per`");
        names(json!({"kind": "rate", "per": "second"}), "`limit`");
        names(
            json!({"kind": "quota", "limit": 1, "period": "day", "burst": 1}),
            "`burst`",
        );
        names(json!({"kind": "unlimited", "limit": 1}), "`limit`");
        names(
            json!({"kind": "rate", "limit": 1, "per": "fortnight"}),
            "fortnight",
        );
        names(json!({"kind": "rate", "limit": -1, "per": "second"}), "-1");
        names(
            json!({"kind": "rate", "limit": 1, "per": "second", "brust": 1}),
            "brust",
        );
        names(
            json!({"kind": "quota", "limit": 1, "period": "week"}),
            "week",
        );
        names(json!({"kind": "unlimited", "scope": "adress"}), "adress");
        names(
            json!({"kind": "unlimited", "unit": "requets"}),
            "`requests`",
        );
        names(
            json!({"kind": "quota", "limit": 1, "per": "month"}),
            "write `period`",
        );
        names(
            json!({"kind": "rate", "limit": 1, "period": "day"}),
            "write `per`",
        );
        names(
            json!({"kind": "window", "limit": 1, "window": "1s", "edge": "exact", "cells": 5}),
            "`cells`",
        );
        let nested = r#"[{"kind": "rate", "limit": 1, "per": 5}]"#;
        let mut deserializer = serde_json::Deserializer::from_str(nested);
        let error: Result<Vec<Rule>, _> = serde_path_to_error::deserialize(&mut deserializer);
        assert_eq!(error.unwrap_err().path().to_string(), "[0].per");
    }
}
