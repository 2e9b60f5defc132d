use super::*;

#[test]
fn a_rule_for_one_route_counts_its_calls_alone_and_refuses_no_other() {
    let mut bench = Bench::new([
        Rule::from(Quota::daily(100)),
        Rate::per_day(2).route("/v1/chat").named("chat"),
    ]);
    bench.scopes = ScopeValues::default().route("/v1/hello");
    assert_eq!(bench.admits(5), 5);
    bench.scopes = ScopeValues::default().route("/v1/chat");
    assert_eq!(bench.admits(5), 2);
    bench.scopes = ScopeValues::default();
    assert_eq!(
        bench.admits(5),
        5,
        "a call whose route is not known is of none"
    );
    assert_eq!(bench.decide(0).states.len(), 1);
}

#[test]
fn a_route_closed_by_a_limit_of_zero_closes_no_other() {
    let mut bench = Bench::new([Rate::per_day(0).route("/v1/chat").named("chat")]);
    bench.scopes = ScopeValues::default().route("/v1/chat");
    assert!(!bench.passes(1));
    bench.scopes = ScopeValues::default().route("/v1/hello");
    assert!(bench.passes(1));
}

#[test]
fn what_is_no_route_is_refused_with_an_example() {
    for wrong in ["v1/chat", "POST /v1/chat", "/v1/chat?x=1", "", "/v1\n"] {
        let error = RuleSet::compile([Rate::per_day(1).route(wrong)]).unwrap_err();
        assert_eq!(error.path(), "rules[0].route", "{wrong:?}");
    }
}
