use proptest::prelude::*;

use super::*;

fn epoch() -> impl Strategy<Value = Epoch> {
    (0..=Epoch::MAX.get()).prop_map(|n| Epoch::new(n).expect("in range"))
}

fn moment() -> impl Strategy<Value = Moment> {
    any::<u64>().prop_map(Moment::from_nanos)
}

fn text() -> impl Strategy<Value = Text> {
    "\\PC{0,400}".prop_map(Text::new)
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (epoch(), moment(), any::<Option<[u8; 32]>>()).prop_map(|(epoch, until, secret)| {
            Command::Start { epoch, until, secret: secret.map(Secret::from_bytes) }
        }),
        (epoch(), moment()).prop_map(|(epoch, until)| Command::Extend { epoch, until }),
        Just(Command::Stop),
        Just(Command::Ping),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Alive),
        (any::<u32>(), text()).prop_map(|(pid, what)| Event::Held { pid, what }),
        text().prop_map(|dir| Event::Confined { dir }),
        text().prop_map(|why| Event::Loose { why }),
        Just(Event::Ready),
        (epoch(), any::<u32>()).prop_map(|(epoch, pid)| Event::Running { epoch, pid }),
        (epoch(), any::<u32>(), text()).prop_map(|(epoch, failures, how)| Event::Exited {
            epoch,
            failures,
            how
        }),
        (epoch(), any::<u32>(), text()).prop_map(|(epoch, failures, reason)| Event::CannotStart {
            epoch,
            failures,
            reason
        }),
        epoch().prop_map(|epoch| Event::Stopping { epoch }),
        (epoch(), moment()).prop_map(|(epoch, at)| Event::Stopped { epoch, at }),
        epoch().prop_map(|epoch| Event::Late { epoch }),
        epoch().prop_map(|epoch| Event::Busy { epoch }),
        text().prop_map(|reason| Event::Failed { reason }),
    ]
}

#[test]
fn forged_and_torn_lines_are_refused() {
    for line in [
        "",
        "START",
        "START 1",
        "START 1 2 3",
        "START -1 2",
        "START +1 2",
        "START 1  2",
        "STOP now",
        "start 1 2",
        "EXTEND 4503599627370496 1",
        "START 1 18446744073709551616",
        "STOP ",
    ] {
        assert!(Command::parse(line).is_err(), "{line:?}");
    }
    assert!(Event::parse("STOPPED 1").is_err());
}

#[test]
fn a_flood_without_line_ends_is_an_error() {
    let mut lines = Lines::default();
    lines.push(&[b'x'; LINE_MAX]);
    assert_eq!(lines.next_line(), Ok(None));
    lines.push(b"x\n");
    assert_eq!(lines.next_line(), Err(Error::TooLong));
}

proptest! {
    #[test]
    fn commands_survive_any_cutting(commands in prop::collection::vec(command(), 0..8), cut in 1usize..20) {
        let stream: String = commands.iter().map(|c| format!("{c}\n")).collect();
        let mut lines = Lines::default();
        let mut back = Vec::new();
        for piece in stream.as_bytes().chunks(cut) {
            lines.push(piece);
            while let Some(line) = lines.next_line().expect("short lines") {
                back.push(Command::parse(&line).expect("a command"));
            }
        }
        prop_assert_eq!(commands, back);
    }

    #[test]
    fn events_survive(event in event()) {
        let line = event.to_string();
        prop_assert!(line.len() <= LINE_MAX && !line.contains('\n'));
        prop_assert_eq!(Event::parse(&line), Ok(event));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut lines = Lines::default();
        lines.push(&bytes);
        while let Ok(Some(line)) = lines.next_line() {
            let _ = Command::parse(&line);
            let _ = Event::parse(&line);
        }
    }
}
