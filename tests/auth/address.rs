use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use axum::extract::ConnectInfo;
use http::Request;
use tollgate::{
    auth::{ClientAddr, PeerAddr, TrustedProxies, network_key},
    head::PeerAddress,
    head::RequestHead,
};

fn request(peer: Option<&str>, forwarded: &[&str]) -> Request<()> {
    let mut request = Request::new(());
    if let Some(peer) = peer {
        let peer = PeerAddress(SocketAddr::new(peer.parse().unwrap(), 40_000));
        request.extensions_mut().insert(peer);
    }
    for line in forwarded {
        let line = line.parse().unwrap();
        request.headers_mut().append("x-forwarded-for", line);
    }
    request
}

fn seen(hook: &impl ClientAddr, request: &Request<()>) -> Option<String> {
    let address = hook.client_addr(&RequestHead::from(request));
    address.map(|address| address.to_string())
}

fn proxies() -> TrustedProxies {
    TrustedProxies::new(["10.0.0.0/8", "2001:db8:ffff::/48", "192.0.2.7"]).unwrap()
}

/// What the proxies' header says of a request from a peer.
fn told(peer: &str, forwarded: &[&str]) -> Option<String> {
    seen(&proxies(), &request(Some(peer), forwarded))
}

#[test]
fn the_peer_is_found_in_either_extension() {
    assert_eq!(seen(&PeerAddr, &request(None, &["198.51.100.1"])), None);
    let own = request(Some("203.0.113.5"), &["198.51.100.1"]);
    assert_eq!(seen(&PeerAddr, &own).as_deref(), Some("203.0.113.5"));
    let mut axum = request(None, &[]);
    let info = ConnectInfo(SocketAddr::from(([203, 0, 113, 6], 1)));
    axum.extensions_mut().insert(info);
    assert_eq!(seen(&PeerAddr, &axum).as_deref(), Some("203.0.113.6"));
    let mapped = request(Some("::ffff:203.0.113.5"), &[]);
    assert_eq!(seen(&PeerAddr, &mapped).as_deref(), Some("203.0.113.5"));
}

#[test]
fn a_closure_is_a_hook() {
    let hook = |head: &RequestHead<'_>| -> Option<IpAddr> {
        head.headers()
            .get("cf-connecting-ip")?
            .to_str()
            .ok()?
            .parse()
            .ok()
    };
    let mut request = request(Some("203.0.113.5"), &[]);
    assert_eq!(seen(&hook, &request), None);
    let address = "198.51.100.9".parse().unwrap();
    request.headers_mut().insert("cf-connecting-ip", address);
    assert_eq!(seen(&hook, &request).as_deref(), Some("198.51.100.9"));
}

#[test]
fn a_peer_that_is_no_proxy_cannot_speak_for_others() {
    for forwarded in [
        "198.51.100.1",
        "10.0.0.1",
        "198.51.100.1, 10.0.0.1",
        "junk",
        "",
    ] {
        assert_eq!(
            told("203.0.113.5", &[forwarded]).as_deref(),
            Some("203.0.113.5")
        );
    }
    assert_eq!(seen(&proxies(), &request(None, &["198.51.100.1"])), None);
}

#[test]
fn the_first_untrusted_hop_from_the_right_is_the_client() {
    for (forwarded, client) in [
        (&["198.51.100.1"][..], "198.51.100.1"),
        (&["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        (&["1.1.1.1, 198.51.100.1, 10.1.2.3"], "198.51.100.1"),
        (
            &["1.1.1.1,198.51.100.1 ,\t10.1.2.3 , 192.0.2.7"],
            "198.51.100.1",
        ),
        // Several lines are one list (RFC 9110 section 5.3).
        (&["1.1.1.1", "198.51.100.1", "10.1.2.3"], "198.51.100.1"),
        (&["198.51.100.1, 10.9.9.9", "10.1.2.3"], "198.51.100.1"),
        (&["junk, 198.51.100.1"], "198.51.100.1"),
        (&["198.51.100.1:8080, 10.1.2.3:443"], "198.51.100.1"),
        (&["[2001:db8::5]:443, 2001:db8:ffff::1"], "2001:db8::5"),
        (&["198.51.100.1, ::ffff:10.1.2.3"], "198.51.100.1"),
        (&["::ffff:198.51.100.1"], "198.51.100.1"),
        // All trusted: who is farthest left began.
        (&["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        // What cannot be read ends the walk at the peer.
        (&["198.51.100.1, junk"], "10.0.0.1"),
        (&["198.51.100.1, junk, 10.2.2.2"], "10.0.0.1"),
        (&["198.51.100.1, "], "10.0.0.1"),
        (&["198.51.100.1, unknown"], "10.0.0.1"),
        (&[""], "10.0.0.1"),
        (&[], "10.0.0.1"),
    ] {
        assert_eq!(
            told("10.0.0.1", forwarded).as_deref(),
            Some(client),
            "{forwarded:?}"
        );
    }
    // The proxy connects over a v6 socket.
    let mapped = told("::ffff:10.0.0.1", &["198.51.100.1"]);
    assert_eq!(mapped.as_deref(), Some("198.51.100.1"));
}

#[test]
fn bytes_that_are_no_text_end_the_walk_at_the_peer() {
    let mut request = request(Some("10.0.0.1"), &["198.51.100.1"]);
    let odd = http::HeaderValue::from_bytes(b"\xff\xfe").unwrap();
    request.headers_mut().append("x-forwarded-for", odd);
    assert_eq!(seen(&proxies(), &request).as_deref(), Some("10.0.0.1"));
}

#[test]
fn a_thousand_forged_lists_are_one_address() {
    let through_proxy: HashSet<_> = (0..1_000)
        .map(|n| {
            let forged = format!("10.0.{}.{}, 9.9.{}.{}", n / 256, n % 256, n / 256, n % 256);
            // The proxy appends whom it heard from.
            told("10.0.0.1", &[&forged, "198.51.100.1"])
        })
        .collect();
    assert_eq!(
        through_proxy,
        HashSet::from([Some("198.51.100.1".to_owned())])
    );
    let direct: HashSet<_> = (0..1_000)
        .map(|n| {
            told(
                "203.0.113.5",
                &[&format!("10.0.0.1, 9.9.{}.{}", n / 256, n % 256)],
            )
        })
        .collect();
    assert_eq!(direct, HashSet::from([Some("203.0.113.5".to_owned())]));
}

#[test]
fn an_entry_that_is_no_network_is_named() {
    for bad in ["10.0.0.0/33", "ten", "", "10.0.0.1/8/9", "*"] {
        let error = TrustedProxies::new(["127.0.0.1", bad]).unwrap_err();
        assert_eq!(error.path(), "trusted_proxies[1]", "{bad}");
    }
}

#[test]
fn a_mapped_network_trusts_the_v4_addresses_in_it() {
    let proxies = TrustedProxies::new(["::ffff:10.0.0.0/104"]).unwrap();
    let trusted = request(Some("10.1.2.3"), &["198.51.100.1"]);
    assert_eq!(seen(&proxies, &trusted).as_deref(), Some("198.51.100.1"));
    let outside = request(Some("11.1.2.3"), &["198.51.100.1"]);
    assert_eq!(seen(&proxies, &outside).as_deref(), Some("11.1.2.3"));
}

#[test]
fn one_ipv6_client_has_one_network() {
    let networks: HashSet<_> = (0..1_000_u128)
        .map(|n| {
            let base = u128::from_str_radix("20010db8000000010000000000000000", 16).unwrap();
            network_key(IpAddr::V6((base + (n << 40) + n).into()))
        })
        .collect();
    assert_eq!(networks.len(), 1);
    let neighbour = network_key("2001:db8:0:2::1".parse().unwrap());
    assert!(!networks.contains(&neighbour));
}
