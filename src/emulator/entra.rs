//! Entra ID, as far as a device meets it: the token services of Azure Arc and of a virtual machine, and roles at the hub.
//!
//! Both services are one plain-HTTP listener, told apart by `api-version` as their clients send it. Tokens are signed with a
//! key of this process and hold no roles: like the real hub, this one looks up what their owner may do at each request,
//! so that a role taken away takes effect at once. There is one identity, and one hub for which it can have tokens. The same
//! identity comes as a registered application in `authority.rs`.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Query, State as Shared},
    http::{HeaderMap, HeaderValue, header},
    response::Response,
    routing::get,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    State,
    answer::{guid, json_response},
    lock,
    policies::Denied,
};

const RESOURCE: &str = "https://iothubs.azure.net";
/// How far clocks may differ.
const SKEW_S: u64 = 300;
/// Challenges that nobody has answered; the oldest are forgotten first.
const OPEN_MAX: usize = 16;
const DAY: Duration = Duration::from_secs(86_400);

/// What an identity may do at the hub. (Azure's built-in roles.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// "IoT Hub Data Contributor": everything.
    DataContributor,
    /// "IoT Hub Data Reader": whatever only reads.
    DataReader,
    /// "IoT Hub Registry Contributor": identities.
    RegistryContributor,
    /// "IoT Hub Twin Contributor": twins.
    TwinContributor,
}

impl Role {
    /// Whether it allows an action, named without `Microsoft.Devices/IotHubs/`.
    fn allows(self, action: &str) -> bool {
        match self {
            Role::DataContributor => true,
            Role::DataReader => action.ends_with("/read"),
            Role::RegistryContributor => action.starts_with("devices/"),
            Role::TwinContributor => action.starts_with("twins/"),
        }
    }
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Role, Self::Err> {
        serde_json::from_value(text.into()).map_err(
            |_| "the roles are data-contributor, data-reader, registry-contributor and twin-contributor",
        )
    }
}

/// The tenant: its signing key, its one identity, and what that may do.
pub(super) struct Tenant {
    key: hmac::Key,
    principal: String,
    rules: Mutex<Rules>,
}

/// What can be switched while it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    /// What the identity may do at the hub.
    pub(super) roles: Vec<Role>,
    /// How long new tokens are good for.
    #[serde(default = "a_day")]
    pub(super) life_s: u64,
}

fn a_day() -> u64 {
    DAY.as_secs()
}

#[derive(Deserialize)]
struct Claims {
    aud: String,
    nbf: u64,
    exp: u64,
    oid: String,
}

impl Tenant {
    pub(super) fn new() -> Result<Tenant, ring::error::Unspecified> {
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let rules = Rules { roles: vec![Role::TwinContributor], life_s: a_day() };
        Ok(Tenant { key, principal: guid(), rules: Mutex::new(rules) })
    }

    pub(super) fn rules(&self) -> Rules {
        lock(&self.rules).clone()
    }

    pub(super) fn set_rules(&self, rules: Rules) {
        *lock(&self.rules) = rules;
    }

    /// The identity's id.
    pub(super) fn principal(&self) -> &str {
        &self.principal
    }

    /// A token, and how long it is good for.
    pub(super) fn issue(&self, now_s: u64) -> (String, u64) {
        let life_s = self.rules().life_s;
        let head = json!({ "alg": "HS256", "typ": "JWT" });
        let claims = json!({
            "aud": RESOURCE, "iss": "https://sts.windows.net/emulated/", "iat": now_s, "nbf": now_s,
            "exp": now_s.saturating_add(life_s), "oid": self.principal, "sub": self.principal,
        });
        let encoded = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", encoded(head), encoded(claims));
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&self.key, signed.as_bytes()));
        (format!("{signed}.{signature}"), life_s)
    }

    /// Lets a bearer in whose role allows the action, or says why not.
    pub(super) fn check(&self, bearer: &str, action: &str, now_s: u64) -> Result<(), Denied> {
        let claims = self.verified(bearer).ok_or(Denied::Unknown)?;
        if claims.aud != RESOURCE || claims.oid != self.principal || claims.nbf > now_s + SKEW_S {
            return Err(Denied::Unknown);
        }
        if claims.exp.saturating_add(SKEW_S) <= now_s {
            return Err(Denied::Expired);
        }
        let roles = self.rules().roles;
        if roles.iter().any(|role| role.allows(action)) {
            return Ok(());
        }
        let held: Vec<String> = roles.iter().map(|role| format!("{role:?}")).collect();
        let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
        Err(Denied::Right(format!(
            "The identity's roles ({held}) lack the action Microsoft.Devices/IotHubs/{action}, which this operation needs."
        )))
    }

    fn verified(&self, bearer: &str) -> Option<Claims> {
        let (signed, signature) = bearer.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&self.key, signed.as_bytes(), &signature).ok()?;
        let claims = URL_SAFE_NO_PAD.decode(signed.split_once('.')?.1).ok()?;
        serde_json::from_slice(&claims).ok()
    }
}

/// The token services, with the proofs that Arc has asked for and not been shown yet.
struct Services {
    state: Arc<State>,
    folder: PathBuf,
    open: Mutex<VecDeque<(PathBuf, String)>>,
}

impl Drop for Services {
    fn drop(&mut self) {
        for (file, _) in lock(&self.open).drain(..) {
            let _removed = fs::remove_file(file).is_ok();
        }
    }
}

/// Serves both token services until the state's stop token is cancelled. Arc's proofs are written into `folder`.
pub(super) fn serve(listener: tokio::net::TcpListener, folder: &Path, state: &Arc<State>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let services = Services { state: state.clone(), folder: folder.canonicalize()?, open: Mutex::default() };
    let router =
        Router::new().route("/metadata/identity/oauth2/token", get(token)).with_state(Arc::new(services));
    let stop = state.stop.clone();
    state.tasks.spawn(async move {
        tokio::select! {
            served = async { axum::serve(listener, router).await } => {
                tracing::debug!(?served, "the emulated token services stopped");
            }
            () = stop.cancelled() => {}
        }
    });
    Ok(())
}

#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "api-version")]
    api_version: Option<String>,
    resource: Option<String>,
}

fn refuse(status: u16, error: &str, description: &str) -> Response {
    json_response(status, &json!({ "error": error, "error_description": description }), &[])
}

async fn token(
    Shared(services): Shared<Arc<Services>>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if !text("metadata").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return refuse(400, "invalid_request", "Required metadata header not specified");
    }
    let arc = match asked.api_version.as_deref() {
        Some("2018-02-01") => false,
        Some("2019-08-15" | "2019-11-01" | "2020-06-01") => true,
        _ => {
            return refuse(
                400,
                "invalid_request",
                "Required query variable 'api-version' is missing or unknown",
            );
        }
    };
    if asked.resource.as_deref().map(|resource| resource.trim_end_matches('/')) != Some(RESOURCE) {
        return refuse(400, "invalid_resource", "The resource is not one that the emulator has tokens for");
    }
    if arc {
        let proof = text(header::AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Basic "));
        match proof {
            None => return services.challenge(),
            Some(proof) if services.accepts(proof) => {}
            Some(_) => return refuse(403, "invalid_client", "The proof is not the one that was asked for"),
        }
    }
    let now_s = services.state.clock.wall_ms() / 1000;
    let (token, life_s) = services.state.tenant.issue(now_s);
    let body = json!({
        "access_token": token,
        "client_id": services.state.tenant.principal,
        "expires_in": life_s.to_string(),
        "expires_on": (now_s + life_s).to_string(),
        "ext_expires_in": life_s.to_string(),
        "not_before": now_s.to_string(),
        "resource": RESOURCE,
        "token_type": "Bearer",
    });
    json_response(200, &body, &[])
}

impl Services {
    /// Asks for proof: the content of a file that only the agent's group can read.
    fn challenge(&self) -> Response {
        let (name, proof) = (guid(), format!("{}{}", guid(), guid()));
        let file = self.folder.join(format!("{name}.key"));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(&file)
            .and_then(|mut open| io::Write::write_all(&mut open, proof.as_bytes()));
        if let Err(why) = written {
            return refuse(500, "server_error", &format!("{} cannot be written: {why}", file.display()));
        }
        let mut response = refuse(401, "unauthorized", "Prove it with the file that is named");
        if let Ok(value) = HeaderValue::from_str(&format!("Basic realm={}", file.display())) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        let mut open = lock(&self.open);
        if open.len() >= OPEN_MAX
            && let Some((oldest, _)) = open.pop_front()
        {
            let _removed = fs::remove_file(oldest).is_ok();
        }
        open.push_back((file, proof));
        response
    }

    /// Whether this is a proof that was asked for; it is good once.
    fn accepts(&self, proof: &str) -> bool {
        let mut open = lock(&self.open);
        let Some(at) = open.iter().position(|(_, wanted)| wanted == proof) else { return false };
        if let Some((file, _)) = open.remove(at) {
            let _removed = fs::remove_file(file).is_ok();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_tokens_of_this_tenant_come_in() {
        let tenant = Tenant::new().expect("keys");
        let (token, life_s) = tenant.issue(1000);
        assert_eq!(tenant.check(&token, "twins/read", 1000), Ok(()));
        assert_eq!(tenant.check(&token, "twins/read", 1000 + life_s + SKEW_S), Err(Denied::Expired));
        assert_eq!(tenant.check(&token, "twins/read", 600), Err(Denied::Unknown));
        let (head, rest) = token.split_once('.').expect("parts");
        let (claims, signature) = rest.split_once('.').expect("parts");
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(claims).expect("base64")).expect("text");
        let longer = URL_SAFE_NO_PAD.encode(text.replace("\"exp\":", "\"exp\":9"));
        for wrong in ["", "a", "a.b", "a.b.c", &format!("{head}.{longer}.{signature}"), head] {
            assert_eq!(tenant.check(wrong, "twins/read", 1000), Err(Denied::Unknown), "{wrong}");
        }
        assert_eq!(Tenant::new().expect("keys").check(&token, "twins/read", 1000), Err(Denied::Unknown));
    }

    #[test]
    fn a_role_allows_its_own_actions_and_a_refusal_names_what_is_missing() {
        let tenant = Tenant::new().expect("keys");
        let token = tenant.issue(0).0;
        for (role, allowed, refused) in [
            ("twin-contributor", "twins/write", "devices/read"),
            ("data-reader", "twins/read", "twins/write"),
            ("registry-contributor", "devices/delete", "twins/read"),
        ] {
            tenant.set_rules(Rules { roles: vec![role.parse().expect("a role")], life_s: 60 });
            assert_eq!(tenant.check(&token, allowed, 0), Ok(()), "{role}");
            let Err(Denied::Right(said)) = tenant.check(&token, refused, 0) else {
                panic!("{role} is let in")
            };
            assert!(said.contains(&format!("Microsoft.Devices/IotHubs/{refused}")), "{said}");
        }
        assert!("owner".parse::<Role>().is_err());
    }
}
