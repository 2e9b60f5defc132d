use http::{HeaderValue, Request};
use proptest::strategy::Strategy as _;
use tollgate::{
    auth::{AuthRefusal, Credential, Extractor, KeySource, MAX_CREDENTIAL_BYTES},
    head::RequestHead,
};

const KEY: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";
const OTHER: &str = "tg_test_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ2ZspdU";

fn request(headers: &[(&str, &[u8])]) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = "/v1/chat?a=1".parse().unwrap();
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        let value = HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().append(name, value);
    }
    request
}

fn extract<'a>(
    extractor: &Extractor,
    request: &'a Request<()>,
) -> Result<Option<Credential<'a>>, AuthRefusal> {
    extractor.extract(&RequestHead::from(request))
}

/// What the default extractor says: the value, or the reason, or nothing.
fn outcome(headers: &[(&str, &[u8])]) -> Result<Option<String>, AuthRefusal> {
    let request = request(headers);
    let credential = extract(&Extractor::default(), &request)?;
    Ok(credential.map(|credential| credential.value.to_owned()))
}

fn found(value: &str) -> Result<Option<String>, AuthRefusal> {
    Ok(Some(value.to_owned()))
}

fn bearer(key: &str) -> Vec<u8> {
    format!("Bearer {key}").into_bytes()
}

#[test]
fn reads_the_header_and_the_bearer_token() {
    let key = KEY.as_bytes();
    assert_eq!(outcome(&[]), Ok(None));
    assert_eq!(outcome(&[("x-api-key", key)]), found(KEY));
    assert_eq!(outcome(&[("X-API-Key", key)]), found(KEY));
    for scheme in ["Bearer ", "bearer ", "BEARER ", "bEaReR   "] {
        let value = format!("{scheme}{KEY}");
        assert_eq!(
            outcome(&[("authorization", value.as_bytes())]),
            found(KEY),
            "{scheme}"
        );
    }
}

#[test]
fn leaves_other_schemes_alone() {
    for value in [
        &b"Basic dXNlcjpwYXNz"[..],
        b"Digest username=\"a\", realm=\"b\", response=\"c\"",
        b"Bearerish tg_live_x",
        b"Bearer-tg_live_x",
        b"BearerX",
        b"tg_live_x",
        b" ",
        b"",
        b"\x80\xff",
        b"Basic \xff\xfe",
    ] {
        assert_eq!(outcome(&[("authorization", value)]), Ok(None), "{value:?}");
        let with_key = [("authorization", value), ("x-api-key", KEY.as_bytes())];
        assert_eq!(outcome(&with_key), found(KEY));
    }
    let two = [
        ("authorization", &b"Basic a"[..]),
        ("authorization", b"Negotiate b"),
    ];
    assert_eq!(outcome(&two), Ok(None));
}

#[test]
fn a_header_sent_twice_is_ambiguous_even_with_one_value() {
    let key = KEY.as_bytes();
    let bearer = bearer(KEY);
    for twice in [
        vec![("x-api-key", key), ("x-api-key", key)],
        vec![("x-api-key", key), ("X-Api-Key", OTHER.as_bytes())],
        vec![("x-api-key", key), ("x-api-key", b"")],
        vec![("x-api-key", b"junk"), ("x-api-key", key)],
        vec![
            ("authorization", &bearer[..]),
            ("authorization", &bearer[..]),
        ],
        vec![
            ("authorization", &bearer[..]),
            ("authorization", b"Basic a"),
        ],
        vec![
            ("authorization", b"Basic a"),
            ("authorization", &bearer[..]),
        ],
        vec![("authorization", b"Bearer"), ("authorization", &bearer[..])],
    ] {
        assert_eq!(outcome(&twice), Err(AuthRefusal::Ambiguous), "{twice:?}");
    }
}

#[test]
fn a_list_joined_by_commas_is_ambiguous() {
    for list in [
        format!("{KEY},{OTHER}"),
        format!("{KEY}, {KEY}"),
        format!("{KEY},"),
        format!(",{KEY}"),
        ",".to_owned(),
    ] {
        assert_eq!(
            outcome(&[("x-api-key", list.as_bytes())]),
            Err(AuthRefusal::Ambiguous)
        );
        let value = format!("Bearer {list}");
        assert_eq!(
            outcome(&[("authorization", value.as_bytes())]),
            Err(AuthRefusal::Ambiguous)
        );
    }
    for value in [
        format!("Basic dXNlcg==, Bearer {KEY}"),
        format!("Basic dXNlcg==,bearer {KEY}"),
        format!("Digest a=\"b\", c=d,   BEARER {KEY}"),
    ] {
        assert_eq!(
            outcome(&[("authorization", value.as_bytes())]),
            Err(AuthRefusal::Ambiguous),
            "{value}"
        );
    }
}

#[test]
fn two_sources_must_agree() {
    let (same, other) = (bearer(KEY), bearer(OTHER));
    let key = KEY.as_bytes();
    assert_eq!(
        outcome(&[("x-api-key", key), ("authorization", &same)]),
        found(KEY)
    );
    for differing in [&other[..], b"Bearer", b"Bearer junk", b"Bearer \xff"] {
        assert_eq!(
            outcome(&[("x-api-key", key), ("authorization", differing)]),
            Err(AuthRefusal::Ambiguous)
        );
    }
    assert_eq!(
        outcome(&[("x-api-key", b""), ("authorization", &same)]),
        Err(AuthRefusal::Ambiguous)
    );
}

#[test]
fn odd_bytes_are_malformed() {
    let long = vec![b'a'; 64 * 1024];
    let just_too_long = vec![b'a'; MAX_CREDENTIAL_BYTES + 1];
    for value in [
        &b""[..],
        b"\x80",
        "clé-0123456789abcdef".as_bytes(),
        b"tab\there",
        b"two words",
        b"\xff\xfe\xfd",
        &long,
        &just_too_long,
    ] {
        assert_eq!(
            outcome(&[("x-api-key", value)]),
            Err(AuthRefusal::Malformed)
        );
        let authorization = [b"Bearer ", value].concat();
        assert_eq!(
            outcome(&[("authorization", &authorization)]),
            Err(AuthRefusal::Malformed)
        );
    }
    assert_eq!(
        outcome(&[("authorization", b"Bearer")]),
        Err(AuthRefusal::Malformed)
    );
    let tab = format!("Bearer\t{KEY}");
    assert_eq!(
        outcome(&[("authorization", tab.as_bytes())]),
        Err(AuthRefusal::Malformed)
    );
    let longest = vec![b'a'; MAX_CREDENTIAL_BYTES];
    assert!(outcome(&[("x-api-key", &longest)]).is_ok());
}

#[test]
fn other_spellings_of_the_header_are_not_the_header() {
    for name in [
        "x_api_key",
        "X_API_KEY",
        "x-api_key",
        "x_api-key",
        "xapikey",
        "x-apikey",
        "x-api-keys",
        "x--api-key",
        "api-key",
        "apikey",
        "x-api-key-",
        "x.api.key",
    ] {
        assert_eq!(outcome(&[(name, OTHER.as_bytes())]), Ok(None), "{name}");
        let both = [(name, OTHER.as_bytes()), ("x-api-key", KEY.as_bytes())];
        assert_eq!(outcome(&both), found(KEY), "{name}");
    }
}

#[test]
fn the_query_is_off_unless_asked_for() {
    let mut request = request(&[]);
    *request.uri_mut() = format!("/?api_key={KEY}&x-api-key={KEY}").parse().unwrap();
    assert!(extract(&Extractor::default(), &request).unwrap().is_none());
}

fn with_query() -> Extractor {
    let header = KeySource::header("x-api-key").unwrap();
    Extractor::new([header, KeySource::query("api_key")]).unwrap()
}

fn query_outcome(target: &str) -> Result<Option<String>, AuthRefusal> {
    let mut request = request(&[]);
    *request.uri_mut() = target.parse().unwrap();
    let credential = extract(&with_query(), &request)?;
    Ok(credential.map(|credential| credential.value.to_owned()))
}

#[test]
fn reads_a_query_parameter_by_its_decoded_name() {
    let at = |query: &str| query_outcome(&format!("/v1{query}"));
    assert_eq!(at(""), Ok(None));
    assert_eq!(at("?a=1&b"), Ok(None));
    assert_eq!(at(&format!("?API_KEY={KEY}")), Ok(None));
    assert_eq!(at(&format!("?my_api_key={KEY}")), Ok(None));
    assert_eq!(at(&format!("?a=1&api_key={KEY}&b=2")), found(KEY));
    assert_eq!(at(&format!("?api%5fkey={KEY}")), found(KEY));
    assert_eq!(at(&format!("?%61%70%69%5F%6B%65%79={KEY}")), found(KEY));
    let twice = format!("?api_key={KEY}&api%5Fkey={OTHER}");
    assert_eq!(at(&twice), Err(AuthRefusal::Ambiguous));
    for malformed in ["?api_key", "?api_key=", "?api_key=a%20b", "?api_key=a+b"] {
        assert_eq!(at(malformed), Err(AuthRefusal::Malformed), "{malformed}");
    }
    assert_eq!(at("?api_ke%7"), Ok(None));
    assert_eq!(at("?%"), Ok(None));
}

#[test]
fn a_header_and_the_query_must_agree() {
    let mut request = request(&[("x-api-key", KEY.as_bytes())]);
    *request.uri_mut() = format!("/?api_key={OTHER}").parse().unwrap();
    assert_eq!(
        extract(&with_query(), &request).unwrap_err(),
        AuthRefusal::Ambiguous
    );
}

#[test]
fn removes_only_what_held_the_credential() {
    let basic = &b"Basic dXNlcg=="[..];
    let mut kept = request(&[
        ("x-api-key", KEY.as_bytes()),
        ("authorization", basic),
        ("x-other", b"1"),
    ]);
    let extractor = Extractor::default();
    let source = extract(&extractor, &kept).unwrap().unwrap().source;
    extractor.strip(&source, &mut kept);
    assert!(!kept.headers().contains_key("x-api-key"));
    assert_eq!(kept.headers()["authorization"], basic);
    assert_eq!(kept.headers()["x-other"], "1");
    assert_eq!(kept.uri(), "/v1/chat?a=1");

    // The same key in both places must not reach the service through the second.
    let bearer = bearer(KEY);
    let mut both = request(&[("x-api-key", KEY.as_bytes()), ("authorization", &bearer)]);
    let source = extract(&extractor, &both).unwrap().unwrap().source;
    extractor.strip(&source, &mut both);
    assert!(both.headers().is_empty());
}

#[test]
fn takes_the_key_out_of_the_target() {
    let extractor = with_query();
    for (before, after) in [
        ("/v1?api_key=K", "/v1"),
        ("/v1?api_key=K&a=1", "/v1?a=1"),
        ("/v1?a=1&api_key=K", "/v1?a=1"),
        ("/v1?a=1&api%5Fkey=K&b=%20&c", "/v1?a=1&b=%20&c"),
        ("http://host:80/v1?api_key=K&a=1", "http://host:80/v1?a=1"),
        ("http://host?api_key=K", "http://host/"),
    ] {
        let mut request = request(&[("x-other", b"1")]);
        *request.uri_mut() = before.replace('K', KEY).parse().unwrap();
        let original = axum::extract::OriginalUri(request.uri().clone());
        request.extensions_mut().insert(original);
        let source = extract(&extractor, &request).unwrap().unwrap().source;
        extractor.strip(&source, &mut request);
        assert_eq!(request.uri().to_string(), after);
        let original = request.extensions().get::<axum::extract::OriginalUri>();
        assert_eq!(original.unwrap().0.to_string(), after);
        assert_eq!(request.headers()["x-other"], "1");
    }
}

#[test]
fn sources_that_cannot_work_are_refused_at_build() {
    let header = || KeySource::header("x-api-key").unwrap();
    let authorization = KeySource::header("authorization").unwrap();
    let path = |sources: Vec<KeySource>| Extractor::new(sources).unwrap_err().path().to_owned();
    assert_eq!(path(vec![]), "sources");
    assert_eq!(path(vec![header(), header()]), "sources[1]");
    assert_eq!(path(vec![KeySource::Bearer, authorization]), "sources[1]");
    assert_eq!(path(vec![header(), KeySource::query("")]), "sources[1]");
    assert_eq!(
        path((0..33).map(|n| KeySource::query(format!("q{n}"))).collect()),
        "sources"
    );
    assert!(KeySource::header("not a name").is_err());
}

proptest::proptest! {
    #[test]
    fn no_value_makes_extraction_panic(
        api_key in proptest::option::of(proptest::collection::vec(32..=255_u8, 0..100)),
        authorization in proptest::collection::vec(
            proptest::prop_oneof![
                proptest::collection::vec(32..=126_u8, 0..100),
                proptest::collection::vec(128..=255_u8, 0..20)
                    .prop_map(|tail| [b"bearer ".to_vec(), tail].concat()),
            ],
            0..3,
        ),
    ) {
        let mut headers: Vec<(&str, &[u8])> = Vec::new();
        headers.extend(api_key.iter().map(|value| ("x-api-key", &value[..])));
        headers.extend(authorization.iter().map(|value| ("authorization", &value[..])));
        headers.retain(|(_, value)| HeaderValue::from_bytes(value).is_ok());
        if let Ok(Some(value)) = outcome(&headers) {
            assert!(!value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
