//! Real sidecars that mirror with an identity of Entra ID: no key of the hub is anywhere on the devices.

use rustix::process::Signal;

use super::{
    hub::Hub,
    site::{Plan, Site, until},
};

/// The owner is lost, and the next one mirrors with the same identity.
fn mirrors_through_a_failover(hub: &Hub, site: &mut Site) {
    site.start_all();
    let (owner, epoch) = site.owner(0);
    let name = |n: usize| format!("edge-{}", n + 1);
    until("the twins to show the owner", || hub.shows(&name(owner), epoch).then_some(()));
    site.signal(owner, Signal::KILL);
    site.left(owner);
    let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
    let (next, newer) = site.owner_among(&others, epoch);
    until("the twins to show the next", || hub.shows(&name(next), newer).then_some(()));
    for n in 0..3 {
        let told = format!("{:?} {}", site.environment(n), site.log(n));
        for word in ["SharedAccessKey", "SharedAccessSignature", "Bearer"] {
            assert!(!told.contains(word), "{word} on device {n}");
        }
    }
    site.runs_without_overlap();
}

#[test]
fn a_site_mirrors_as_a_registered_application_and_finds_a_new_secret() {
    let hub = Hub::start(1);
    let mut site = Site::with(Plan { more: hub.application_section(), ..Plan::default() });
    mirrors_through_a_failover(&hub, &mut site);
    // The secret is changed in the directory first, as people do, and the tokens in hand are taken back.
    let others: Vec<usize> = (0..3).filter(|n| site.runs(*n)).collect();
    let (owner, epoch) = site.owner_among(&others, 0);
    let new = hub.emulator.rotate_secret();
    hub.emulator.trouble(quorate::hub::trouble::Trouble::TokensExpired);
    site.condition(owner, "hub.unauthorized");
    hub.emulator.trouble(quorate::hub::trouble::Trouble::None);
    let detail = until("the directory's refusal", || {
        Some(site.condition(owner, "hub.unauthorized")).filter(|detail| detail.contains("AADSTS7000215"))
    });
    assert!(detail.contains("client-secret") && !detail.contains(new.secret.reveal()), "{detail}");
    hub.write_secret(new.secret.reveal());
    site.reports(owner, "the new secret to be used", |r| r.hub.in_sync);
    assert_eq!(site.owner_among(&others, 0), (owner, epoch), "the ownership did not change");
}

#[test]
fn a_site_mirrors_as_its_virtual_machines() {
    let hub = Hub::start(1);
    let service = hub.serve_identity();
    let mut site = Site::with(Plan { more: hub.identity_section("imds", ""), ..Plan::default() });
    for n in 0..3 {
        site.tell(n, "AZURE_POD_IDENTITY_AUTHORITY_HOST", format!("http://{service}"));
    }
    mirrors_through_a_failover(&hub, &mut site);
}
