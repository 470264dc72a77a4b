//! The gate on a link in memory, on tokio's paused clock.

use std::{sync::Mutex, time::Duration};

use tokio::sync::Notify;

use super::*;
use crate::{
    clock::Moment,
    hub::{
        BoxFuture, Error,
        link::{Link, OwnTwin},
        twin::Properties,
    },
};

const S: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct PausedClock(tokio::time::Instant);

impl Clock for PausedClock {
    fn now(&self) -> Moment {
        Moment::from_nanos(1) + self.0.elapsed()
    }
    fn wall_ms(&self) -> u64 {
        0
    }
}

/// A link that takes messages when it is told to.
#[derive(Default)]
struct Taker {
    log: Mutex<Vec<String>>,
    sent: Mutex<Vec<Message>>,
    slow: Option<Notify>,
    broken: bool,
}

impl Taker {
    fn note(&self, what: String) {
        self.log.lock().expect("not poisoned").push(what);
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().expect("not poisoned").clone()
    }
}

impl Link for Taker {
    fn get_twin(&self) -> BoxFuture<'_, Result<OwnTwin, Error>> {
        Box::pin(async { Ok(OwnTwin::default()) })
    }
    fn report<'a>(&'a self, _: &'a Properties) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async { Ok(None) })
    }
    fn answer<'a>(
        &'a self,
        _: &'a str,
        _: u16,
        _: &'a serde_json::Value,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
    fn send<'a>(&'a self, output: &'a str, message: &'a Message) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.note(format!("send to {output}: {}", String::from_utf8_lossy(&message.body)));
            self.sent.lock().expect("not poisoned").push(message.clone());
            if let Some(slow) = &self.slow {
                slow.notified().await;
            }
            if self.broken {
                return Err(Error::Unreachable("the link has ended".into()));
            }
            self.note(format!("taken: {}", String::from_utf8_lossy(&message.body)));
            Ok(())
        })
    }
    fn settle(&self, input: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.note(format!("settle {input}"));
            Ok(())
        })
    }
}

struct Bench {
    inputs: mpsc::Sender<Input>,
    held: watch::Sender<Option<Held>>,
    clock: Arc<PausedClock>,
    counts: Counts,
    task: tokio::task::JoinHandle<()>,
}

impl Bench {
    fn new() -> Bench {
        let (inputs, come) = mpsc::channel(64);
        let held = watch::Sender::new(None);
        let clock = Arc::new(PausedClock(tokio::time::Instant::now()));
        let counts = Counts::default();
        let this = GateLoop {
            inputs: come,
            held: held.subscribe(),
            clock: clock.clone(),
            site: SiteId::new("plant-7").expect("a name"),
            gate: settings::Gate { input: "gate".into(), output: "out".into() },
            counts: counts.clone(),
        };
        #[expect(clippy::disallowed_methods, reason = "a test owns its one task")]
        let task = tokio::spawn(this.run(CancellationToken::new()));
        Bench { inputs, held, clock, counts, task }
    }

    /// This device owns under this epoch for so long.
    fn hold(&self, epoch: u64, time: Duration) {
        let epoch = Epoch::new(epoch).expect("small");
        self.held.send_replace(Some(Held { epoch, until: self.clock.now() + time }));
    }

    async fn comes(&self, link: &Arc<Taker>, number: u64, input: &str, message: Message) {
        let message = Message { body: number.to_string().into(), ..message };
        let input = Input { link: link.clone(), number, input: input.into(), message };
        assert!(self.inputs.send(input).await.is_ok(), "the gate runs");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn counted(&self) -> [u64; 4] {
        let counts: Vec<u64> = self.counts.all().map(|(_, count)| count).collect();
        counts.try_into().expect("four")
    }
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[tokio::test(start_paused = true)]
async fn messages_leave_on_the_owner_alone_while_its_lease_is_held() {
    let (bench, link) = (Bench::new(), Arc::new(Taker::default()));
    bench.comes(&link, 1, "gate", Message::default()).await;
    bench.hold(7, S);
    bench.comes(&link, 2, "gate", Message::default()).await;
    bench.comes(&link, 3, "elsewhere", Message::default()).await;
    // The lease lapses although nobody says so.
    tokio::time::sleep(S).await;
    bench.comes(&link, 4, "gate", Message::default()).await;
    bench.held.send_replace(None);
    bench.comes(&link, 5, "gate", Message::default()).await;
    let expected = ["settle 1", "send to out: 2", "taken: 2", "settle 2", "settle 3", "settle 4", "settle 5"];
    assert_eq!(link.log(), expected);
    assert_eq!(bench.counted(), [1, 3, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn each_message_says_under_which_epoch_and_nobody_else_can() {
    let (bench, link) = (Bench::new(), Arc::new(Taker::default()));
    let forged = Message {
        properties: vec![pair("quorate_epoch", "99"), pair("unit", "K"), pair("quorate_site", "other")],
        system: vec![
            pair("$.mid", "m-1"),
            pair("$.cdid", "edge-1"),
            pair("$.cmid", "work"),
            pair("$.on", "x"),
        ],
        ..Message::default()
    };
    bench.hold(7, S * 60);
    bench.comes(&link, 1, "gate", forged.clone()).await;
    bench.comes(&link, 2, "gate", Message::default()).await;
    bench.hold(9, S * 60);
    bench.comes(&link, 3, "gate", Message::default()).await;
    let sent = link.sent.lock().expect("not poisoned").clone();
    let stamps = |epoch, seq| {
        [pair("quorate_epoch", epoch), pair("quorate_seq", seq), pair("quorate_site", "plant-7")]
    };
    assert_eq!(sent[0].properties, [vec![pair("unit", "K")], stamps("7", "1").to_vec()].concat());
    assert_eq!(sent[0].system, [pair("$.mid", "m-1")]);
    assert_eq!(sent[1].properties, stamps("7", "2"));
    assert_eq!(sent[2].properties, stamps("9", "1"), "numbers begin anew with each epoch");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_taken_is_not_settled() {
    let bench = Bench::new();
    bench.hold(7, S * 60);
    let slow = Arc::new(Taker { slow: Some(Notify::new()), ..Taker::default() });
    bench.comes(&slow, 1, "gate", Message::default()).await;
    assert_eq!(slow.log(), ["send to out: 1"]);
    slow.slow.as_ref().expect("it is slow").notify_one();
    tokio::time::sleep(S).await;
    assert_eq!(slow.log(), ["send to out: 1", "taken: 1", "settle 1"]);
    let broken = Arc::new(Taker { broken: true, ..Taker::default() });
    bench.comes(&broken, 1, "gate", Message::default()).await;
    assert_eq!(broken.log(), ["send to out: 1"], "it comes again on the next link");
    assert_eq!(bench.counted(), [1, 0, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn few_are_on_their_way_at_once_and_those_that_waited_are_judged_anew() {
    let bench = Bench::new();
    bench.hold(7, S * 2);
    let slow = Arc::new(Taker { slow: Some(Notify::new()), ..Taker::default() });
    for number in 0..20 {
        bench.comes(&slow, number, "gate", Message::default()).await;
    }
    assert_eq!(slow.log().len(), ON_THE_WAY, "the rest waits: {:?}", slow.log());
    tokio::time::sleep(S * 3).await;
    slow.slow.as_ref().expect("it is slow").notify_one();
    tokio::time::sleep(S).await;
    let sent = slow.log().iter().filter(|what| what.starts_with("send")).count();
    assert_eq!(sent, ON_THE_WAY, "the lease had lapsed when their turn came");
    assert_eq!(bench.counted(), [1, 4, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_nothing_can_come_in() {
    let bench = Bench::new();
    drop(bench.inputs);
    bench.task.await.expect("ends");
}
