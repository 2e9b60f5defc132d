use serde_json::Value;

use crate::{
    auth::{AuthRefusal, jwt::Claims},
    id::{Environment, KeyId, PlanName, TenantId},
    identity::Grant,
};

/// Whom a token speaks for, and what it lets its bearer do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TokenGrant {
    /// The tenant, which must be in the tenant store.
    pub tenant: TenantId,
    /// A plan in place of the tenant's; it must be in the catalog.
    pub plan: Option<PlanName>,
    /// What the token grants. A [`Grant::expires_at`] ends it sooner than it would by itself, never later.
    pub grant: Grant,
}

impl TokenGrant {
    /// A token of a tenant, on the tenant's plan.
    #[must_use]
    pub const fn new(tenant: TenantId, grant: Grant) -> Self {
        Self {
            tenant,
            plan: None,
            grant,
        }
    }
}

/// Makes of a token's claims whom it speaks for. A closure works.
///
/// Runs once for each token, after everything about it was checked; the answer is kept until the token ends.
///
/// # Contract
///
/// Neither waits nor does I/O. A refusal is for a token that lacks what is needed: [`AuthRefusal::TenantUnknown`]
/// for one that names no tenant, [`AuthRefusal::Malformed`] for another fault.
pub trait ClaimsToIdentity: Send + Sync + 'static {
    /// Whom the token speaks for.
    ///
    /// # Errors
    ///
    /// Why the token is refused.
    fn token_grant(&self, claims: &Claims) -> Result<TokenGrant, AuthRefusal>;
}

impl<F> ClaimsToIdentity for F
where
    F: Fn(&Claims) -> Result<TokenGrant, AuthRefusal> + Send + Sync + 'static,
{
    fn token_grant(&self, claims: &Claims) -> Result<TokenGrant, AuthRefusal> {
        self(claims)
    }
}

/// The default [`ClaimsToIdentity`]: each thing from a claim whose name can be set.
///
/// | what | from | when it is absent |
/// | --- | --- | --- |
/// | tenant | `tenant` | the token is refused |
/// | scopes | `scope`, else `scp` ([`Claims::scopes`]) | none |
/// | key id, in usage and for rules of each key | `client_id`, else `azp`, else `sub` | none |
/// | plan | no claim unless set | the tenant's |
/// | environment | no claim unless set | live |
///
/// A claim that is there and is no text, or cannot be what it should (a tenant's name of 300 characters, an
/// environment besides `live` and `test`), refuses the token; but a client's name that cannot be a key id counts
/// as absent. Claims are those at the top of the token: for nested ones write a closure.
#[derive(Clone, Debug)]
#[must_use]
pub struct ClaimMapping {
    environment: Option<Box<str>>,
    key: Vec<Box<str>>,
    plan: Option<Box<str>>,
    tenant: Box<str>,
}

impl ClaimMapping {
    /// The table above.
    pub fn new() -> Self {
        Self {
            environment: None,
            key: ["client_id", "azp", "sub"].map(Box::from).to_vec(),
            plan: None,
            tenant: "tenant".into(),
        }
    }

    /// The claim that names the tenant, such as `org_id`; `tenant` unless set.
    pub fn tenant(mut self, claim: impl AsRef<str>) -> Self {
        self.tenant = claim.as_ref().into();
        self
    }

    /// The claim that names a plan; the tenant's plan counts unless set. Whoever sets the claim decides what is
    /// paid for.
    pub fn plan(mut self, claim: impl AsRef<str>) -> Self {
        self.plan = Some(claim.as_ref().into());
        self
    }

    /// The claim that says `live` or `test`; all tokens are live unless set.
    pub fn environment(mut self, claim: impl AsRef<str>) -> Self {
        self.environment = Some(claim.as_ref().into());
        self
    }

    /// The claims of which the first that is present is the key id; none for no key id.
    pub fn key(mut self, claims: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.key = claims
            .into_iter()
            .map(|name| name.as_ref().into())
            .collect();
        self
    }
}

impl Default for ClaimMapping {
    fn default() -> Self {
        Self::new()
    }
}

impl ClaimsToIdentity for ClaimMapping {
    fn token_grant(&self, claims: &Claims) -> Result<TokenGrant, AuthRefusal> {
        let tenant = text(claims, Some(&self.tenant))?.ok_or(AuthRefusal::TenantUnknown)?;
        let tenant = TenantId::new(tenant).map_err(|_| AuthRefusal::TenantUnknown)?;
        let plan = match text(claims, self.plan.as_deref())? {
            Some(name) => Some(PlanName::new(name).map_err(|_| AuthRefusal::Malformed)?),
            None => None,
        };
        let environment = match text(claims, self.environment.as_deref())? {
            None => Environment::Live,
            Some(name) => *[Environment::Live, Environment::Test]
                .iter()
                .find(|one| one.as_str() == name)
                .ok_or(AuthRefusal::Malformed)?,
        };
        let key = self.key.iter().find_map(|name| claims.text(name));
        Ok(TokenGrant {
            tenant,
            plan,
            grant: Grant {
                key: key.and_then(|id| KeyId::new(id).ok()),
                environment,
                scopes: claims.scopes(),
                ..Grant::default()
            },
        })
    }
}

/// A claim that must be a text where it is present.
fn text<'a>(claims: &'a Claims, name: Option<&str>) -> Result<Option<&'a str>, AuthRefusal> {
    match name.and_then(|name| claims.get(name)) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(AuthRefusal::Malformed),
    }
}
