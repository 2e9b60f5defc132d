//! `/v1/invoiceitems` (docs.stripe.com/api/invoiceitems).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tollgate::clock::Timestamp;

use super::{Form, Reply};

/// An item that waits for its customer's next invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InvoiceItem {
    pub(crate) id: String,
    pub(crate) customer: String,
    pub(crate) amount: i64,
    pub(crate) currency: String,
    pub(crate) description: String,
    pub(crate) metadata: BTreeMap<String, String>,
    date: u64,
}

#[derive(Debug, Default)]
pub(crate) struct InvoiceItems {
    pub(crate) made: Vec<InvoiceItem>,
}

impl InvoiceItem {
    fn json(&self) -> Value {
        json!({
            "id": self.id,
            "object": "invoiceitem",
            "amount": self.amount,
            "currency": self.currency,
            "customer": self.customer,
            "date": self.date,
            "description": self.description,
            "invoice": null,
            "livemode": false,
            "metadata": self.metadata,
        })
    }
}

impl InvoiceItems {
    pub(crate) fn create(&mut self, form: &Form, now: Timestamp) -> Reply {
        let field = |name: &str| form.get(name).map(String::as_str);
        let known = [
            "amount",
            "currency",
            "customer",
            "description",
            "period[start]",
            "period[end]",
        ];
        let is_metadata = |name: &str| name.starts_with("metadata[") && name.ends_with(']');
        if let Some(unknown) = form
            .keys()
            .find(|name| !known.contains(&name.as_str()) && !is_metadata(name))
        {
            let message = format!("Received unknown parameter: {unknown}");
            return Reply::error(400, "parameter_unknown", &message);
        }
        let (Some(customer), Some(amount), Some(currency)) =
            (field("customer"), field("amount"), field("currency"))
        else {
            return Reply::error(400, "parameter_missing", "Missing required param");
        };
        if !customer.starts_with("cus_") {
            return Reply::error(400, "resource_missing", "No such customer");
        }
        let Ok(amount) = amount.parse::<i64>() else {
            return Reply::error(400, "parameter_invalid_integer", "Invalid integer: amount");
        };
        let is_code = currency.len() == 3 && currency.bytes().all(|it| it.is_ascii_lowercase());
        if !is_code {
            return Reply::error(400, "parameter_invalid_string", "Invalid currency");
        }
        let metadata = form
            .iter()
            .filter(|(name, _)| is_metadata(name))
            .map(|(name, value)| {
                let name = name.trim_start_matches("metadata[").trim_end_matches(']');
                (name.to_owned(), value.clone())
            });
        let item = InvoiceItem {
            id: format!("ii_{}", self.made.len()),
            customer: customer.to_owned(),
            amount,
            currency: currency.to_owned(),
            description: field("description").unwrap_or_default().to_owned(),
            metadata: metadata.collect(),
            date: now.as_unix_seconds(),
        };
        let reply = Reply::ok(item.json());
        self.made.push(item);
        reply
    }

    /// Newest first, a page at a time.
    pub(crate) fn list(&self, form: &Form) -> Reply {
        let field = |name: &str| form.get(name).map(String::as_str);
        let limit = match field("limit").map(str::parse::<usize>) {
            None => 10,
            Some(Ok(limit)) if (1..=100).contains(&limit) => limit,
            Some(_) => {
                return Reply::error(400, "parameter_invalid_integer", "Invalid integer: limit");
            }
        };
        let own = self.made.iter().rev();
        let own =
            own.filter(|item| field("customer").is_none_or(|customer| item.customer == customer));
        let own: Vec<_> = match field("starting_after") {
            None => own.collect(),
            Some(after) => own.skip_while(|item| item.id != after).skip(1).collect(),
        };
        let page: Vec<_> = own.iter().take(limit).map(|item| item.json()).collect();
        Reply::ok(json!({
            "object": "list",
            "url": "/v1/invoiceitems",
            "has_more": own.len() > page.len(),
            "data": page,
        }))
    }
}
