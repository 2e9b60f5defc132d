//! The limit layer alone, in a service that has neither keys nor tenants.

mod counts;
mod failure;
mod fields;
mod settle;

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use sfv::{BareItem, ListEntry, Parser};
use tollgate::{
    clock::ManualClock,
    limit::{LimitLayer, MemoryLimits, Rule},
};
use tower::{Service, ServiceExt};

type Answer = Response<Full<Bytes>>;

async fn hello(_: Request<()>) -> Result<Answer, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

fn request() -> Request<()> {
    Request::new(())
}

fn layer<R: Into<Rule>>(clock: &ManualClock, rules: impl IntoIterator<Item = R>) -> LimitLayer {
    LimitLayer::new(MemoryLimits::new(), rules)
        .unwrap()
        .clock(Arc::new(clock.clone()))
}

async fn status<S, B>(service: &S, request: Request<()>) -> StatusCode
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    service.clone().oneshot(request).await.unwrap().status()
}

/// The items of a list of strings with integer parameters, parsed by another's RFC 9651 parser.
fn items(response: &Response<impl Body>, field: &str) -> Vec<(String, Vec<(String, String)>)> {
    let text = response
        .headers()
        .get(field)
        .unwrap_or_else(|| panic!("no {field}"))
        .as_bytes();
    let list: sfv::List = Parser::new(text).parse().unwrap();
    let item = |entry: &ListEntry| match entry {
        ListEntry::Item(item) => {
            let BareItem::String(name) = &item.bare_item else {
                panic!("{item:?} is no string")
            };
            let parameters = item.params.iter().map(|(name, value)| {
                let value = match value {
                    BareItem::Integer(n) => n.to_string(),
                    BareItem::String(text) => text.to_string(),
                    other => panic!("{other:?}"),
                };
                (name.to_string(), value)
            });
            (name.to_string(), parameters.collect())
        }
        ListEntry::InnerList(list) => panic!("{list:?} is no item"),
    };
    list.iter().map(item).collect()
}

fn pairs(parameters: &[(&str, &str)]) -> Vec<(String, String)> {
    parameters
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
