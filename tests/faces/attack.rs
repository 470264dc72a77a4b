//! Attacks on what programs are told.

use std::time::Duration;

use quorate::{
    clock::Moment,
    status::{door::Door as _, word::Word},
};
use rustix::time::{ClockId, clock_gettime};

use super::Puppet;

fn boottime() -> Duration {
    let t = clock_gettime(ClockId::Boottime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.try_into().expect("small"))
}

/// The sidecar stands still between the look at its own clock and the look at the kernel's: the moment that is told is later than the
/// end of the lease.
#[tokio::test]
async fn a_word_that_was_made_slowly_does_not_outlive_its_lease() {
    let puppet = Puppet::new();
    puppet.permit(7, Duration::from_millis(500));
    let begun = boottime();
    let (permit, now): (_, Moment) = (puppet.permits().borrow().clone(), puppet.clock().now());
    let end = begun + permit.until.since(now) + Duration::from_millis(5);
    // SIGSTOP, a suspend, a starved processor.
    #[expect(clippy::disallowed_methods, reason = "nothing runs meanwhile")]
    std::thread::sleep(Duration::from_millis(300));
    let word = Word::of(&*puppet, permit);
    let told = Duration::from_nanos(word.until_boottime_ns);
    assert!(told <= end, "told {:?} beyond the end of the lease", told - end);
}
