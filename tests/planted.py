#!/usr/bin/env python3
"""Breaks each safety rule on purpose and demands that the named test notices.

    tests/planted.py            all of them
    tests/planted.py crc mark   those whose name contains one of the words

Works on a copy of the tracked files below target/planted, never on the files themselves. Each rule costs one build and one
test, some seconds up to a minute. Exit code 0 only if every bug was noticed. README.md beside this file has the table.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "planted"
GUARD, SLED, FENCE = "src/raft/vote_guard.rs", "src/raft/log/sled.rs", "src/workload/fence.rs"
PLAN, RECORD, DECIDE = "src/reconcile/mirror/plan.rs", "src/ownership/record.rs", "src/ownership/decide.rs"

# name, file, function, what is replaced, by what (lists where it takes more than one change), and the tests that must
# fail ("lib" or "suite", name). What is replaced must occur exactly once.
BUGS = [
    ("promise-window", GUARD, "Guard::may_vote",
     "let left = promise.until.since(now);", "let left = Duration::ZERO; let _ = promise.until;",
     [("lib", "raft::vote_guard::tests::refuses_to_vote_within_the_window_of_its_promise")]),
    ("boot-window", GUARD, "Guard::may_vote",
     "let left = self.boot_refusal_until.since(now);", "let left = Duration::ZERO; let _ = self.boot_refusal_until;",
     [("lib", "raft::vote_guard::tests::refuses_to_vote_within_the_window_of_its_boot")]),
    ("boot-window-lifted", GUARD, "Guard::may_vote",
     "if !left.is_zero() {\n            return Err(VoteRefusal::Booting", "if !left.is_zero() && self.lifted.is_none() {\n            return Err(VoteRefusal::Booting",
     [("lib", "raft::vote_guard::tests::refuses_to_vote_within_the_window_of_its_boot")]),
    ("workload-runs", GUARD, "Guard::may_vote",
     "if self.workload_runs {", "if self.workload_runs && false {",
     [("lib", "raft::vote_guard::tests::refuses_to_vote_while_its_own_workload_may_run"),
      ("suite", "scenario::a_workload_that_cannot_be_ended_keeps_its_device_from_voting")]),
    ("workload-not-told", "src/reconcile/ownership.rs", "OwnershipLoop::start",
     "self.group.guard().workload(true);", "",
     [("suite", "scenario::a_workload_that_cannot_be_ended_keeps_its_device_from_voting")]),
    ("receipt-lifts-any-epoch", GUARD, "Guard::may_vote",
     "self.lifted != Some(promise.epoch)", "self.lifted.is_none()",
     [("lib", "raft::vote_guard::tests::a_receipt_lifts_promises_of_its_own_epoch_only")]),
    ("receipt-lifts-nothing", "src/raft/machine.rs", "Machine::publish",
     "self.guard.lift(released.epoch);", "let _ = released;",
     [("suite", "scenario::a_planned_handover")]),
    ("late-question-hides-promise", GUARD, "Guard::promise",
     "fresh.epoch.max(old.epoch)", "fresh.epoch",
     [("lib", "raft::vote_guard::tests::a_late_question_for_an_earlier_epoch_does_not_hide_the_promise_for_the_later")]),
    ("promise-below-the-vote", GUARD, "Guard::promise",
     "if to < self.highest {", "if to < self.highest && false {",
     [("lib", "raft::vote_guard::tests::promises_nothing_to_a_ballot_below_its_vote")]),
    ("promise-while-voting", GUARD, "Guard::promise",
     "if self.voting > 0 {", "if self.voting > u32::MAX - 1 {",
     [("lib", "raft::vote_guard::tests::promises_nothing_while_a_vote_is_being_decided")]),
    ("vote-not-observed", "src/raft/log/mod.rs", "LogStore::save_vote",
     "self.guard.observe(ballot(vote));", "let _ = (ballot(vote), &self.guard);",
     [("lib", "raft::log::tests::while_a_vote_is_written_nothing_lower_is_promised")]),
    ("votes-around-the-guard", "src/raft/peer/server.rs", "Service::vote, pre_vote",
     ["self.guard.begin_vote(Some(ballot(&vote))).map_err(refused)?", "match self.guard.may_vote() {"],
     ["self.guard.begin_vote(Some(ballot(&vote))).map_err(refused).ok()", "match self.guard.may_vote().or(Ok::<(), VoteRefusal>(())) {"],
     [("suite", "scenario::one_link_between_owner_and_standby_breaks")]),
    ("lease-from-the-answer", "src/reconcile/lease.rs", "LeaseLoop::answered",
     "state.lease.promised(answer.node, answer.asked);", "state.lease.promised(answer.node, self.clock.now());",
     [("suite", "scenario::the_owners_links_are_slow_and_then_cut")]),
    ("lease-without-quorum", "src/ownership/lease.rs", "Lease::quorum_asked",
     "asked.get(voters.len() / 2).copied()", "asked.first().copied()",
     [("lib", "ownership::lease::tests::a_minority_gives_no_lease")]),
    ("lease-counts-strangers", "src/ownership/lease.rs", "Lease::quorum_asked",
     "voters.iter().filter_map(|v| self.promised.get(v).copied()).collect()", "self.promised.values().copied().collect()",
     [("lib", "ownership::lease::tests::strangers_do_not_count")]),
    ("lease-never-ends", DECIDE, "as_owner",
     "*of == epoch && view.now < *until", "*of == epoch && view.now.before(std::time::Duration::MAX) < *until",
     [("lib", "ownership::decide::tests::at_the_end_of_the_lease_it_stops")]),
    ("lease-of-another-epoch", DECIDE, "as_owner",
     "*of == epoch && view.now < *until", "of.get() > 0 && view.now < *until",
     [("lib", "ownership::decide::tests::the_lease_of_another_epoch_is_worth_nothing")]),
    ("timing-without-drift", "src/timing.rs", "smallest_refusal",
     "let with_drift = act_ns + act_ns * u128::from(drift_ppm) / 1_000_000;", "let with_drift = act_ns + 0 * u128::from(drift_ppm);",
     [("lib", "timing::tests::every_timing_keeps_the_inequality")]),
    ("standing-not-caught-up", "src/raft/group.rs", "standing",
     "(true, false) => Standing::NewLeader,", "(true, false) => Standing::Leader,",
     [("lib", "raft::group::tests::a_leader_is_new_until_an_entry_of_its_own_term_is_applied")]),
    ("new-leader-acts", DECIDE, "as_owner",
     ["(Running::Stopped, None, Standing::NewLeader, _) =>", "(Running::Stopped, None, Standing::Leader, Some(until)) =>"],
     ["(Running::Stopped, None, Standing::NewLeader, None) =>", "(Running::Stopped, None, Standing::Leader | Standing::NewLeader, Some(until)) =>"],
     [("lib", "ownership::decide::tests::runs_only_where_all_four_agree")]),
    ("claim-without-base", RECORD, "Record::claim",
     "self.expect(claim.base)?;", "",
     [("lib", "ownership::record::tests::what_does_not_fit_is_refused_and_changes_nothing")]),
    ("receipt-of-another-epoch", RECORD, "Record::stop_receipt",
     "self.expect(receipt.epoch)?;", "",
     [("lib", "ownership::record::tests::what_does_not_fit_is_refused_and_changes_nothing")]),
    ("restarted-owner-resumes", RECORD, "Record::owned_by",
     "o.device == *device && o.incarnation == incarnation", "o.device == *device && o.incarnation.0 != incarnation.0.wrapping_add(1)",
     [("lib", "ownership::record::tests::a_restarted_owner_never_resumes_its_epoch"),
      ("suite", "scenario::the_owners_sidecar_restarts_at_once")]),
    ("deadline-ignored", FENCE, "Fence::mind_the_clock",
     "if now >= *until =>\n            {\n                self.end(now, deeds);", "if now >= *until && false =>\n            {\n                self.end(now, deeds);",
     [("lib", "workload::fence::tests::the_deadline_needs_no_message"),
      ("suite", "process::fencer::the_deadline_passes_without_any_message")]),
    ("deadline-goes-back", FENCE, "Fence::extend",
     "*until = (*until).max(to.min(now + HORIZON));", "*until = to.min(now + HORIZON);",
     [("lib", "workload::fence::tests::extending_moves_forward_only_and_only_the_own_epoch")]),
    ("deadline-of-another-epoch", FENCE, "Fence::extend",
     "&& *epoch == of\n", "&& epoch.get() + 9 > of.get()\n",
     [("lib", "workload::fence::tests::extending_moves_forward_only_and_only_the_own_epoch")]),
    ("deadline-without-horizon", FENCE, "Fence::extend",
     "to.min(now + HORIZON)", "to.max(now)",
     [("lib", "workload::fence::tests::extending_moves_forward_only_and_only_the_own_epoch")]),
    ("stop-wins-time", FENCE, "Fence::end",
     "kill_at: now.min(until) + self.kill_after", "kill_at: now.max(until) + self.kill_after",
     [("lib", "workload::fence::tests::a_stop_near_the_deadline_does_not_win_time")]),
    ("never-killed", FENCE, "Fence::mind_the_clock",
     "deeds.push(Deed::Kill);", "",
     [("lib", "workload::fence::tests::nothing_outlives_its_deadline"),
      ("suite", "process::fencer::the_deadline_passes_and_the_workload_ignores_term")]),
    ("sidecar-gone-ignored", FENCE, "Fence::step",
     "self.sidecar_gone = true;\n                self.end(now, &mut deeds);", "self.sidecar_gone = true;",
     [("lib", "workload::fence::tests::a_lost_sidecar_ends_the_workload_and_then_the_fencer")]),
    ("mirror-without-comparison", PLAN, "plan",
     ".filter(|(_, _, seen)| seen.epoch > published.epoch)", ".filter(|(_, _, seen)| seen.epoch > published.epoch + 9)",
     [("lib", "reconcile::mirror::plan::tests::one_twin_ahead_silences_the_mirror"),
      ("suite", "scenario::a_stale_owner_with_a_good_line_cannot_overwrite")]),
    ("set-before-clear", PLAN, "plan",
     "(true, false) => 0,", "(true, false) => 3,",
     [("lib", "reconcile::mirror::plan::tests::the_old_flag_is_cleared_before_the_new_one_is_set")]),
    ("no-if-match", "src/reconcile/mirror.rs", "Work::write",
     "hub.patch_twin(device, &change, Some(etag))", "hub.patch_twin(device, &change, Some(etag).filter(|e| e.is_empty()))",
     [("lib", "reconcile::mirror::tests::a_stale_owner_that_compared_in_time_still_cannot_overwrite"),
      ("suite", "scenario::a_stale_owner_with_a_good_line_cannot_overwrite")]),
    ("mark-not-compared", SLED, "check",
     "if contents.vote < promised.vote {", "if contents.vote < promised.vote && false {",
     [("lib", "raft::log::sled::tests::a_store_behind_its_mark_is_damaged")]),
    ("log-mark-not-compared", SLED, "check",
     "&& next <= last.index\n", "&& next + 99 <= last.index\n",
     [("lib", "raft::log::sled::tests::a_store_behind_its_mark_is_damaged")]),
    ("crc-not-checked", SLED, "unseal",
     "(checksum(key, content).to_le_bytes() == crc).then_some(content)", "(checksum(key, content).to_le_bytes() == crc || true).then_some(content)",
     [("lib", "raft::log::sled::tests::a_value_that_does_not_match_its_checksum_is_refused")]),
    ("store-not-synced", SLED, "durable",
     "file.sync_data()", "file.metadata().map(|_| ())",
     [("suite", "durability::every_acknowledged_write_was_synced_first")]),
    ("mark-not-synced", "src/raft/log/mark.rs", "MarkFile::write",
     "self.file.sync_data()?;", "",
     [("suite", "durability::every_acknowledged_write_was_synced_first")]),
]


def copy():
    """A fresh copy of the tracked files; only what differs is written, so that little is built again."""
    tree = WORK / "tree"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        source, target = ROOT / name, tree / name
        if not source.exists():
            continue
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return tree


def run(tree, kind, test):
    which = ["--lib"] if kind == "lib" else ["--test", "suite"]
    command = ["cargo", "test", "-q", *which, "--", "--exact", test]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(WORK / "target"), RUST_BACKTRACE="0")
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    out = done.stdout + done.stderr
    if re.search(r"^test result: ok\. 1 passed", out, re.M):
        return "passed"
    if re.search(r"^test result: FAILED\. 0 passed; 1 failed", out, re.M):
        return "failed"
    return "broken: " + (re.findall(r"^error.*$", out, re.M) or ["no such test"])[0]


def main():
    words = sys.argv[1:]
    tree, missed = copy(), []
    for name, file, function, old, new, tests in BUGS:
        if words and not any(word in name for word in words):
            continue
        path = tree / file
        good = path.read_text()
        pairs = [(old, new)] if isinstance(old, str) else list(zip(old, new))
        stale = [old for old, _ in pairs if good.count(old) != 1]
        if stale:
            print(f"{name}: not exactly once in {file} ({function}): {stale}", flush=True)
            missed.append(name)
            continue
        bad = good
        for old, new in pairs:
            bad = bad.replace(old, new)
        path.write_text(bad)
        try:
            for kind, test in tests:
                result = run(tree, kind, test)
                print(f"{name}: {test} {'notices' if result == 'failed' else 'DOES NOT NOTICE: ' + result}", flush=True)
                if result != "failed":
                    missed.append(name)
        finally:
            path.write_text(good)
    if missed:
        sys.exit("not noticed: " + ", ".join(missed))


main()
