//! Identities of Entra ID: this machine's own, or a registered application's with its secret in a file.
//!
//! Azure Arc's agent and a virtual machine's hosts say in the environment where they are asked, under the names that Microsoft's
//! own clients read.

use std::path::PathBuf;

use super::super::{
    fault::Where,
    listeners::absolute,
    section::{Notes, Section, Spot},
    source::Environment,
};
use crate::hub::{
    entra::{client::read_secret, on_this_machine},
    settings::{AUTHORITY, Identity, Registration},
};

const KINDS: &str = "write \"arc\", \"imds\" or \"client\"";
const TOKEN_PATH: &str = "/metadata/identity/oauth2/token";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Arc,
    Imds,
    Client,
}

/// Which identity, and where it was written; without a value if something is missing that it needs.
pub(super) fn read(
    section: &mut Section,
    environment: &Environment,
    notes: &mut Notes,
) -> Option<Spot<Option<Identity>>> {
    let before = notes.faults.len();
    let kind = section.parsed("identity", notes, kind, KINDS);
    let kind_broken = notes.faults.len() > before;
    let tenant =
        section.parsed("tenant", notes, tenant, "write the directory's (tenant) id, as the portal shows it");
    let client_id =
        section.parsed("client_id", notes, guid, "write the application (client) id, as the portal shows it");
    let secret_file = secret_file(section, notes);
    let authority = section.parsed(
        "authority",
        notes,
        authority,
        "leave it out for Azure's public cloud, else write https:// and a host",
    );
    let known = kind.as_ref().map(|kind| kind.value);
    if !kind_broken {
        let strays = [
            (tenant.as_ref().map(|s| &s.at), "tenant", [Kind::Client, Kind::Client]),
            (client_id.as_ref().map(|s| &s.at), "client_id", [Kind::Client, Kind::Imds]),
            (secret_file.as_ref().map(|s| &s.at), "client_secret_file", [Kind::Client, Kind::Client]),
            (authority.as_ref().map(|s| &s.at), "authority", [Kind::Client, Kind::Client]),
        ];
        for (at, key, users) in strays {
            if let Some(at) = at.filter(|_| known.is_none_or(|kind| !users.contains(&kind))) {
                let problem = "is only used with hub.identity = \"client\"";
                notes.fault(at, &section.full(key), problem, "leave it out, or write identity = \"client\"");
            }
        }
    }
    let Spot { value: kind, at } = kind?;
    let identity = match kind {
        Kind::Arc => Some(Identity::Arc { endpoint: arcs(environment, notes) }),
        Kind::Imds => Some(Identity::Imds {
            endpoint: metadata_service(environment, notes),
            client_id: client_id.map(|s| s.value),
        }),
        Kind::Client => {
            let keys = [
                (tenant.is_none(), "tenant", "write the directory's (tenant) id, as the portal shows it"),
                (
                    client_id.is_none(),
                    "client_id",
                    "write the application (client) id, as the portal shows it",
                ),
                (
                    secret_file.is_none(),
                    "client_secret_file",
                    "name a file that holds the client secret's value",
                ),
            ];
            for (_, key, advice) in keys.iter().filter(|(missing, ..)| *missing) {
                notes.missing(&at, &section.full(key), advice);
            }
            match (tenant, client_id, secret_file) {
                (Some(tenant), Some(client_id), Some(secret_file)) => Some(Identity::Client(Registration {
                    tenant: tenant.value,
                    client_id: client_id.value,
                    secret_file: secret_file.value,
                    authority: authority.map_or_else(|| AUTHORITY.to_owned(), |s| s.value),
                })),
                _ => None,
            }
        }
    };
    Some(Spot { value: identity, at })
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "arc" => Ok(Kind::Arc),
        "imds" => Ok(Kind::Imds),
        "client" => Ok(Kind::Client),
        other => Err(format!("{other:?} is not an identity")),
    }
}

/// A directory's id, or a domain of it. The words for "whichever" name none, and an application has to name one.
fn tenant(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
    let whichever = matches!(text, "common" | "organizations" | "consumers");
    match (1..=253).contains(&text.len()) && text.bytes().all(good) && !text.contains("..") && !whichever {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not the id of one directory")),
    }
}

fn guid(text: &str) -> Result<String, String> {
    let lengths = text.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    match lengths && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not an id of the form 00000000-0000-0000-0000-000000000000")),
    }
}

fn authority(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").map(|host| host.trim_end_matches('/'));
    match host.map(super::host) {
        Some(Ok(host)) => Ok(format!("https://{host}")),
        _ => Err(format!("{text:?} is not https:// and a host")),
    }
}

/// The file with the secret. What it holds is used when a token is asked for, but a fault is found now.
fn secret_file(section: &mut Section, notes: &mut Notes) -> Option<Spot<PathBuf>> {
    let advice = "write an absolute path of a file that holds the client secret's value";
    let spot = section.parsed("client_secret_file", notes, |t| absolute(t, 4000), advice)?;
    match read_secret(&spot.value) {
        Ok(_) => Some(spot),
        Err(why) => {
            let problem = format!("{} {why}", spot.value.display());
            notes.fault(&spot.at, &section.full("client_secret_file"), problem, why.advice());
            None
        }
    }
}

/// Where Arc's agent listens, if it says so. Other services of Azure set the first variable alone.
fn arcs(environment: &Environment, notes: &mut Notes) -> Option<String> {
    const ENDPOINT: &str = "IDENTITY_ENDPOINT";
    environment.get("IMDS_ENDPOINT")?;
    local(ENDPOINT, environment.get(ENDPOINT)?.to_owned(), notes)
}

/// Where the metadata service is, if the environment says so.
fn metadata_service(environment: &Environment, notes: &mut Notes) -> Option<String> {
    const HOST: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";
    let host = environment.get(HOST)?;
    local(HOST, format!("{}{TOKEN_PATH}", host.trim_end_matches('/')), notes)
}

fn local(variable: &str, endpoint: String, notes: &mut Notes) -> Option<String> {
    if let Err(why) = on_this_machine(&endpoint) {
        let advice = "unset it, or set it to what the service on this machine says";
        notes.fault(&Where::Environment(variable.to_owned()), "", why.to_string(), advice);
    }
    Some(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_authorities() {
        for good in ["plant.onmicrosoft.com", "72f988bf-86f1-41af-91ab-2d7cd011db47"] {
            assert!(tenant(good).is_ok(), "{good}");
        }
        for wrong in ["", "common", "organizations", "a/b", "a..b", "ü", "a b"] {
            assert!(tenant(wrong).is_err(), "{wrong}");
        }
        assert!(guid("72f988bf-86f1-41af-91ab-2d7cd011db47").is_ok());
        for wrong in ["", "72f988bf86f141af91ab2d7cd011db47", "72f988bf-86f1-41af-91ab-2d7cd011db4g", "name"]
        {
            assert!(guid(wrong).is_err(), "{wrong}");
        }
        let same = |text: &str| authority(text).ok();
        assert_eq!(same("https://login.example/"), Some("https://login.example".into()));
        assert_eq!(same("https://localhost:4"), Some("https://localhost:4".into()));
        for wrong in ["http://login.example", "login.example", "https://a.b/c", "https://", "https://u@a.b"] {
            assert_eq!(same(wrong), None, "{wrong}");
        }
    }
}
