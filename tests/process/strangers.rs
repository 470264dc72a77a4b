//! Who comes to the door for members and does not belong there, or belongs there and talks nonsense.

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use bytes::{Buf as _, BufMut as _};
use prost::Message as _;
use quorate::{config, dice::Dice, id::DeviceId};
use rustix::process::Signal;
use tonic::{
    Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Endpoint,
};

use super::site::{Plan, Site, TIMING};

/// The site with devices 0 and 1 at work; device 2 is whoever comes.
fn two_of_three() -> (Site, usize, u64) {
    let mut site = Site::with(Plan::default());
    for n in 0..2 {
        site.start(n);
    }
    for n in 0..2 {
        site.up(n);
    }
    let (owner, epoch) = site.owner_among(&[0, 1], 0);
    (site, owner, epoch)
}

#[test]
fn a_sidecar_with_another_idea_of_the_site_is_refused_and_named_on_both_sides() {
    let (mut site, owner, epoch) = two_of_three();
    let other_site = site.configuration("plant-8", TIMING);
    let other_list = site.configuration("plant-7", TIMING).replace("\"edge-2\"", "\"edge-9\"");
    let other_timing = site.configuration("plant-7", "hold = \"1600ms\"");
    for (n, (text, word)) in [
        (other_site, "it belongs to site \"plant-8\", this is site plant-7"),
        (other_list, "edge-3 was given another member list or other timing"),
        (
            other_timing,
            "edge-3 was given other timing: heartbeat is 80ms there and 150ms here, hold is 1600ms there and 1500ms \
             here, refusal is 2425ms there and 2324ms here",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let file = site.file(&format!("other-{n}.toml"));
        fs::write(&file, text).expect("writes");
        let data = site.file(&format!("other-data-{n}"));
        fs::create_dir(&data).expect("makes");
        site.tell(2, "QUORATE_CONFIG", file.display().to_string());
        site.tell(2, "QUORATE_STORAGE__PATH", data.display().to_string());
        site.start(2);
        site.up(2);
        for member in [0, 1] {
            let report = site.reports(member, word, |r| r.knocks.iter().any(|k| k.reason == word));
            let knock = report.knocks.iter().find(|k| k.reason == word).expect("just seen");
            assert_eq!(knock.device, "edge-3");
            assert!(knock.count > 0 && knock.address.starts_with("127."), "{knock:?}");
            let detail =
                &report.conditions.iter().find(|c| c.name == "peer.refused").expect("is shown").detail;
            assert!(detail.contains("edge-3"), "{detail}");
        }
        let own = site.reports(2, "its own status to say so", |r| {
            r.conditions
                .iter()
                .any(|c| c.name == "peer.refused" && c.detail.contains("this sidecar was refused by"))
        });
        assert!(own.conditions.iter().any(|c| c.detail.contains(word)), "{:?}", own.conditions);
        assert!(!own.owner.known, "it knows nothing of a site that does not know it");
        let text = site.ask(0, &["status"]);
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.contains("peer.refused") && text.contains("edge-3"), "{text}");
        site.signal(2, Signal::TERM);
        assert_eq!(site.left(2).code(), Some(0), "{}", site.log(2));
    }
    assert_eq!(site.owner_among(&[0, 1], 0), (owner, epoch), "the ownership did not change");
    assert_eq!(site.runs_without_overlap().len(), 1);
}

/// Messages as bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

const METHODS: [&str; 7] = ["Vote", "Append", "Snapshot", "PreVote", "Renew", "Propose", "Greet"];

/// Somebody with a connection to the door for members.
struct Caller {
    runtime: tokio::runtime::Runtime,
    grpc: tonic::client::Grpc<tonic::transport::Channel>,
    introduction: BTreeMap<&'static str, String>,
}

impl Caller {
    fn new(address: SocketAddr, introduction: &[(&'static str, &str)]) -> Caller {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let endpoint = endpoint.timeout(Duration::from_secs(20)).connect_timeout(Duration::from_secs(20));
        let grpc = runtime.block_on(async { tonic::client::Grpc::new(endpoint.connect_lazy()) });
        let introduction = introduction.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        Caller { runtime, grpc, introduction }
    }

    /// Device 2 of the site, as far as anybody can tell.
    fn member(site: &Site, to: usize) -> Caller {
        let digest = format!("{:016x}", digest(site));
        let introduction =
            [("quorate-site", "plant-7"), ("quorate-device", "edge-3"), ("quorate-digest", digest.as_str())];
        Caller::new(site.devices[to].peer, &introduction)
    }

    fn call(&mut self, method: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
        let mut request = Request::new(message);
        for (key, value) in &self.introduction {
            request.metadata_mut().insert(*key, value.parse().expect("plain text"));
        }
        let path: PathAndQuery = format!("/quorate.peer.v1.Peer/{method}").parse().expect("a path");
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            grpc.unary(request, path, Raw).await.map(tonic::Response::into_inner)
        })
    }

    #[track_caller]
    fn refused(&mut self, method: &str, message: &impl prost::Message, code: Code, word: &str) {
        let status = self.call(method, message.encode_to_vec()).expect_err(word);
        assert_eq!(status.code(), code, "{method}: {status}");
        assert!(status.message().contains(word), "{method}: {word:?} in {:?}", status.message());
    }
}

pub(super) fn digest(site: &Site) -> u64 {
    let variables = site.environment(2).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let environment = config::Environment { variables, run_dir: site.file("no-run") };
    config::load(None, &environment).expect("a good configuration").site.digest()
}

#[test]
fn garbage_at_each_call_is_an_error_and_nothing_else() {
    let (mut site, owner, epoch) = two_of_three();
    let mut dice = Dice::new(2026);
    let right = format!("{:016x}", digest(&site));
    for n in 0..2 {
        let address = site.devices[n].peer;
        let own = site.devices[n].id.clone();
        for (introduction, word) in [
            (vec![], "does not introduce itself"),
            (vec![("quorate-site", "plant-8"), ("quorate-device", "edge-3")], "it belongs to site"),
            (vec![("quorate-site", "plant-7"), ("quorate-device", "edge-7")], "not in the member list"),
            (vec![("quorate-site", "plant-7"), ("quorate-device", own.as_str())], "which is this device"),
            (vec![("quorate-site", "plant-7"), ("quorate-device", "edge-3")], "another member list"),
            (
                vec![("quorate-site", "plant-7"), ("quorate-device", "edge-3"), ("quorate-digest", "0")],
                "another member list",
            ),
        ] {
            let mut caller = Caller::new(address, &introduction);
            for method in METHODS {
                let status = caller.call(method, vec![1, 2, 3]).expect_err(word);
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                assert!(status.message().contains(word), "{word:?} in {status}");
            }
        }
        for _ in 0..100 {
            let name = format!("{:x}", dice.throw()).repeat(200);
            let introduction =
                [("quorate-site", "plant-7"), ("quorate-device", name.as_str()), ("quorate-digest", &right)];
            Caller::new(address, &introduction).call("Greet", vec![]).expect_err("is nobody");
        }
        let report = site.report(n).expect("answers");
        assert_eq!(report.knocks.len(), 16);
        assert!(
            report.knocks.iter().all(|k| k.device.len() < 200 && k.reason.len() < 400),
            "{:?}",
            report.knocks
        );

        let mut member = Caller::member(&site, n);
        for method in METHODS {
            for round in 0..60 {
                let length = usize::try_from(dice.throw() % 300).expect("small");
                let bytes: Vec<u8> = (0..length).map(|_| dice.throw() as u8).collect();
                let answer = member.call(method, bytes);
                if method != "Greet" {
                    let status = answer.expect_err("garbage");
                    assert!(
                        matches!(status.code(), Code::InvalidArgument | Code::Internal),
                        "{method} {round}: {status}"
                    );
                }
            }
            let status = member.call(method, vec![0; 5 << 20]).expect_err("five megabytes");
            assert!(!status.message().is_empty());
        }
        member.call("Nothing", vec![]).expect_err("there is no such call");
        member.call("Greet", vec![]).expect("a member that makes sense is still heard");
        assert!(site.runs(n), "{}", site.log(n));
        assert!(!site.log(n).contains("panicked"), "{}", site.log(n));
    }
    assert_eq!(site.owner_among(&[0, 1], 0), (owner, epoch), "the ownership did not change");
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct LogId {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Ballot {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Vote {
    #[prost(message, optional, tag = "1")]
    ballot: Option<Ballot>,
    #[prost(message, optional, tag = "2")]
    last_log_id: Option<LogId>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(message, optional, tag = "1")]
    log_id: Option<LogId>,
    #[prost(bool, tag = "2")]
    blank: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Append {
    #[prost(message, optional, tag = "1")]
    ballot: Option<Ballot>,
    #[prost(message, optional, tag = "2")]
    prev: Option<LogId>,
    #[prost(message, optional, tag = "3")]
    committed: Option<LogId>,
    #[prost(message, repeated, tag = "4")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Config {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    #[prost(uint64, tag = "1")]
    id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Membership {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<Config>,
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<Node>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Meta {
    #[prost(message, optional, tag = "1")]
    last_log_id: Option<LogId>,
    #[prost(message, optional, tag = "2")]
    membership_log_id: Option<LogId>,
    #[prost(message, optional, tag = "3")]
    membership: Option<Membership>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(message, optional, tag = "1")]
    ballot: Option<Ballot>,
    #[prost(message, optional, tag = "2")]
    meta: Option<Meta>,
    #[prost(bytes = "vec", tag = "3")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Renew {
    #[prost(message, optional, tag = "1")]
    ballot: Option<Ballot>,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(uint64, tag = "4")]
    refusal_us: u64,
    #[prost(uint64, tag = "6")]
    lease_left_us: u64,
    #[prost(uint64, tag = "7")]
    echo_ns: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(string, tag = "1")]
    unfit: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Greet {
    #[prost(message, optional, tag = "1")]
    health: Option<Health>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Propose {
    #[prost(bytes = "vec", tag = "1")]
    command: Vec<u8>,
}

#[test]
fn a_member_that_says_impossible_things_is_not_believed() {
    let (mut site, owner, epoch) = two_of_three();
    let node = |name: &str| DeviceId::new(name).expect("a name").first_node().0;
    let me = node("edge-3");
    for n in 0..2 {
        let mut liar = Caller::member(&site, n);
        let led = |term| Some(Ballot { term, node: me, committed: true });
        let wrong = Code::InvalidArgument;
        let renew = |ballot, epoch| Renew {
            ballot,
            epoch,
            refusal_us: u64::MAX,
            lease_left_us: u64::MAX,
            echo_ns: 1,
        };
        liar.refused("Renew", &renew(None, 1), wrong, "ballot is missing");
        let others = Some(Ballot { term: 1, node: node(&site.devices[n].id), committed: true });
        liar.refused("Renew", &renew(others, 1), wrong, "not the caller's");
        liar.refused("Renew", &renew(led(u64::MAX), 1), wrong, "term is out of range");
        liar.refused("Renew", &renew(led(1), 1 << 53), wrong, "epoch is out of range");
        // An old leader's question, with a wish for all eternity: nothing is promised.
        let reply = liar.call("Renew", renew(led(0), 1).encode_to_vec()).expect("answers");
        assert_ne!(reply.first(), Some(&0x08), "promised: {reply:?}");

        let far = LogId { term: 1, node: me, index: u64::MAX };
        let vote = |ballot, last_log_id| Vote { ballot, last_log_id };
        for method in ["Vote", "PreVote"] {
            liar.refused(method, &vote(led(2), None), wrong, "cannot be committed");
            let stands = |term| Some(Ballot { term, node: me, committed: false });
            liar.refused(method, &vote(stands(u64::MAX), None), wrong, "term is out of range");
            liar.refused(method, &vote(stands(2), Some(far)), wrong, "log index is out of range");
        }
        // It might be a fair question, but this member has promised its vote to the owner's lease.
        let fair = vote(Some(Ballot { term: 1000, node: me, committed: false }), None);
        let word = if n == owner { "not vote" } else { "promised" };
        let status = liar.call("Vote", fair.encode_to_vec()).expect_err("is refused");
        assert_eq!(status.code(), Code::Aborted, "{word}: {status}");

        let entry = |term, index| Entry { log_id: Some(LogId { term, node: me, index }), blank: true };
        let append = |prev, entries| Append { ballot: led(1), prev, committed: None, entries };
        liar.refused("Append", &append(Some(far), vec![]), wrong, "log index is out of range");
        liar.refused("Append", &append(None, vec![entry(1, 5)]), wrong, "not consecutive");
        liar.refused("Append", &append(None, vec![entry(9, 0)]), wrong, "later term");
        let nobody =
            Append { ballot: Some(Ballot { term: 9, node: me, committed: false }), ..Append::default() };
        liar.refused("Append", &nobody, wrong, "nobody has elected");

        let at = |index| Some(LogId { term: 1, node: me, index });
        let membership = |voters: Vec<u64>, nodes: &[u64]| {
            Some(Membership {
                configs: vec![Config { voters }],
                nodes: nodes.iter().map(|id| Node { id: *id }).collect(),
            })
        };
        let meta = Meta {
            last_log_id: at(1 << 40),
            membership_log_id: at(1),
            membership: membership(vec![me], &[me]),
        };
        let snapshot =
            |meta: &Meta| Snapshot { ballot: led(1 << 20), meta: Some(meta.clone()), data: b"{}".to_vec() };
        liar.refused("Snapshot", &snapshot(&meta), wrong, "holds no record");
        let no_voters = Meta { membership: membership(vec![], &[]), ..meta.clone() };
        liar.refused("Snapshot", &snapshot(&no_voters), wrong, "has no voters");
        let ghost = Meta { membership: membership(vec![me, 5], &[me]), ..meta.clone() };
        liar.refused("Snapshot", &snapshot(&ghost), wrong, "not among the nodes");
        liar.refused("Snapshot", &Snapshot { meta: None, ..snapshot(&meta) }, wrong, "meta is missing");

        liar.refused(
            "Propose",
            &Propose { command: b"{\"command\":\"be_nice\"}".to_vec() },
            wrong,
            "not a command",
        );
        liar.refused("Propose", &Propose { command: vec![b' '; 1 << 20] }, wrong, "too long");
        let health = Health { unfit: "ill\n".repeat(10_000), version: "\u{1b}[2J".repeat(10_000) };
        liar.call("Greet", Greet { health: Some(health) }.encode_to_vec()).expect("is heard");
        let report = site.report(n).expect("answers");
        let third = report.members.iter().find(|m| m.device == "edge-3").expect("is a member");
        assert!(third.build.len() < 2000 && third.unfit_reason.as_ref().is_some_and(|u| u.len() < 2000));
        assert!(!third.build.contains('\u{1b}'));
        assert!(site.runs(n), "{}", site.log(n));
        assert!(!site.log(n).contains("panicked"), "{}", site.log(n));
    }
    assert_eq!(site.owner_among(&[0, 1], 0), (owner, epoch), "the ownership did not change");
    // What was refused is not found on the disk either.
    for n in 0..2 {
        site.signal(n, Signal::KILL);
        site.left(n);
    }
    for n in 0..2 {
        site.start(n);
        site.up(n);
    }
    site.owner_among(&[0, 1], epoch);
    site.runs_without_overlap();
}
