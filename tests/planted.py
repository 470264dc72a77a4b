#!/usr/bin/env python3
"""Breaks each safety rule on purpose and demands that the named test notices.

    tests/planted.py             all of them
    tests/planted.py crc mark    those whose name contains one of the words
    tests/planted.py --some 6    six of them, others for each commit
    tests/planted.py --list      says which there are, and checks that each still fits the sources; builds nothing
    tests/planted.py --sim 50    breaks each rule and lets so many seeds of `cargo sim` look for it instead of the named tests
    tests/planted.py --json out  writes the result there as well

Works on one copy of the tracked files below target/planted, never on the files themselves; only what differs from the last
bug is built again. Exit code 0 only if every bug was noticed and every place was found. README.md beside this file has the
table.
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "planted"
GUARD, SLED, FENCE = "src/raft/vote_guard.rs", "src/raft/log/sled.rs", "src/workload/fence.rs"
PLAN, RECORD, DECIDE = "src/reconcile/mirror/plan.rs", "src/ownership/record.rs", "src/ownership/decide.rs"
ORDERS, HANDLED = "src/ownership/record/orders.rs", "src/ownership/record/handled.rs"

# name, file, function, what is replaced, by what (lists where it takes more than one change), and the tests that must
# fail ("lib", "suite" or "model", name). What is replaced must occur exactly once.
BUGS = [
    ("promise-window", GUARD, "Guard::may_vote",
     "let left = promise.until.since(now);", "let left = Duration::ZERO; let _ = promise.until;",
     [("lib", "raft::vote_guard::tests::refuses_to_vote_within_the_window_of_its_promise"),
      ("model", "no_reachable_state_is_bad")]),
    ("boot-window", GUARD, "Guard::may_vote",
     "let left = self.boot_refusal_until.since(now);", "let left = Duration::ZERO; let _ = self.boot_refusal_until;",
     [("lib", "raft::vote_guard::tests::refuses_to_vote_within_the_window_of_its_boot")]),
    ("boot-window-lifted", GUARD, "Guard::may_vote",
     "if !left.is_zero() {\n            return Err(VoteRefusal::Booting", "if !left.is_zero() && self.lifted.is_none() {\n            return Err(VoteRefusal::Booting",
     [("lib", "raft::vote_guard::tests::refuses_to_vote_within_the_window_of_its_boot")]),
    ("workload-runs", GUARD, "Guard::may_vote",
     "if self.workload_runs {", "if self.workload_runs && false {",
     [("lib", "raft::vote_guard::tests::refuses_to_vote_while_its_own_workload_may_run"),
      ("suite", "scenario::loss::a_workload_that_cannot_be_ended_keeps_its_device_from_voting")]),
    ("workload-not-told", "src/reconcile/ownership.rs", "OwnershipLoop::start",
     "self.group.guard().workload(true);", "",
     [("suite", "scenario::loss::a_workload_that_cannot_be_ended_keeps_its_device_from_voting")]),
    ("receipt-lifts-any-epoch", GUARD, "Guard::may_vote",
     "self.lifted != Some(promise.epoch)", "self.lifted.is_none()",
     [("lib", "raft::vote_guard::tests::a_receipt_lifts_promises_of_its_own_epoch_only"),
      ("model", "no_reachable_state_is_bad")]),
    ("receipt-lifts-nothing", "src/raft/machine.rs", "Machine::publish",
     "self.guard.lift(released.epoch);", "let _ = released;",
     [("suite", "scenario::handover::a_planned_handover")]),
    ("late-question-hides-promise", GUARD, "Guard::promise",
     "fresh.epoch.max(old.epoch)", "fresh.epoch",
     [("lib", "raft::vote_guard::tests::a_late_question_for_an_earlier_epoch_does_not_hide_the_promise_for_the_later")]),
    ("promise-below-the-vote", GUARD, "Guard::promise",
     "if to < self.highest {", "if to < self.highest && false {",
     [("lib", "raft::vote_guard::tests::promises_nothing_to_a_ballot_below_its_vote"),
      ("model", "no_reachable_state_is_bad")]),
    ("promise-while-voting", GUARD, "Guard::promise",
     "if self.voting > 0 {", "if self.voting > u32::MAX - 1 {",
     [("lib", "raft::vote_guard::tests::promises_nothing_while_a_vote_is_being_decided")]),
    ("vote-not-observed", "src/raft/log/mod.rs", "LogStore::save_vote",
     "self.guard.observe(ballot(vote));", "let _ = (ballot(vote), &self.guard);",
     [("lib", "raft::log::tests::while_a_vote_is_written_nothing_lower_is_promised")]),
    ("votes-around-the-guard", "src/raft/peer/server.rs", "Service::vote, pre_vote",
     ["Ok(ticket) => ticket,", "Err(refusal) => return Err(refused(refusal)),", "match self.guard.may_vote() {"],
     ["Ok(ticket) => Some(ticket),", "Err(refusal) => (None, refused(refusal)).0,", "match self.guard.may_vote().or(Ok::<(), VoteRefusal>(())) {"],
     [("suite", "scenario::links::one_link_between_owner_and_standby_breaks")]),
    ("lease-from-the-answer", "src/reconcile/lease.rs", "LeaseLoop::answered",
     "state.lease.promised(answer.node, answer.until);", "state.lease.promised(answer.node, self.clock.now() + timing.hold());",
     [("suite", "scenario::links::the_owners_links_are_slow_and_then_cut")]),
    ("answer-of-another-question", "src/raft/peer/line.rs", "Line::answered",
     "= streams.asked.remove(&reply.number)", "= streams.asked.pop_last().map(|(_, asked)| asked)",
     [("suite", "scenario::links::the_owners_links_are_slow_and_then_cut")]),
    ("told-lease-from-the-question", "src/raft/peer/line.rs", "Line::answered",
     "theirs: Moment::from_nanos(reply.echo_ns), heard }", "theirs: Moment::from_nanos(reply.echo_ns), heard: sent }",
     [("suite", "scenario::links::what_standbys_are_told_of_the_lease_ends_with_it")]),
    ("told-lease-too-long", "src/raft/vouch.rs", "Echo::left",
     "until.since(self.heard)", "until.since(self.theirs.min(self.heard))",
     [("lib", "raft::vouch::tests::is_never_believed_for_longer_than_the_lease")]),
    ("any-won-vote-unsynced", SLED, "Writer::write",
     "if mark.vote == Some(StoredVote { committed: false, ..vote }) {", "if vote.committed {",
     [("suite", "durability::every_acknowledged_write_was_synced_first")]),
    ("lease-from-the-new-hold", "src/reconcile/lease.rs", "LeaseLoop::answered",
     "state.lease.promised(answer.node, answer.until);", "state.lease.promised(answer.node, answer.asked + timing.hold());",
     [("suite", "scenario::brownout::the_owner_is_cut_off_while_the_timing_changes")]),
    ("promise-beyond-the-disk", GUARD, "Guard::promise",
     "if asked > self.ceiling {", "if asked > self.ceiling && false {",
     [("lib", "raft::vote_guard::tests::promises_no_longer_than_a_restart_would_remember"),
      ("lib", "raft::log::tests::no_restart_forgets_how_long_was_promised")]),
    ("ceiling-before-the-write", "src/raft/log/mod.rs", "LogStore::append",
     "self.widest.before(change);", "self.widest.after(change);",
     [("lib", "raft::log::tests::no_restart_forgets_how_long_was_promised")]),
    ("boot-forgets-the-agreed-window", "src/raft/group.rs", "Group::start",
     "boot_refusal.max(paces.widest())", "boot_refusal",
     [("suite", "scenario::brownout::a_standby_restarts_inside_a_window_that_was_widened")]),
    ("lease-without-quorum", "src/ownership/lease.rs", "Lease::quorum_until",
     "until.get(voters.len() / 2).copied()", "until.first().copied()",
     [("lib", "ownership::lease::tests::a_minority_gives_no_lease")]),
    ("lease-counts-strangers", "src/ownership/lease.rs", "Lease::quorum_until",
     "voters.iter().filter_map(|v| self.promised.get(v).copied()).collect()", "self.promised.values().copied().collect()",
     [("lib", "ownership::lease::tests::strangers_do_not_count")]),
    ("lease-never-ends", DECIDE, "as_owner",
     "*of == epoch && view.now < *until", "*of == epoch && view.now.before(std::time::Duration::MAX) < *until",
     [("lib", "ownership::decide::tests::at_the_end_of_the_lease_it_stops")]),
    ("lease-of-another-epoch", DECIDE, "as_owner",
     "*of == epoch && view.now < *until", "of.get() > 0 && view.now < *until",
     [("lib", "ownership::decide::tests::the_lease_of_another_epoch_is_worth_nothing")]),
    ("timing-without-drift", "src/timing.rs", "smallest_refusal",
     "let with_drift = act_ns + (act_ns * u128::from(drift_ppm)).div_ceil(1_000_000);", "let with_drift = act_ns + 0 * u128::from(drift_ppm);",
     [("lib", "timing::tests::every_timing_keeps_the_inequality")]),
    ("standing-not-caught-up", "src/raft/role.rs", "standing",
     "(true, false) => Standing::NewLeader,", "(true, false) => Standing::Leader,",
     [("lib", "raft::role::tests::a_leader_is_new_until_an_entry_of_its_own_term_is_applied")]),
    ("new-leader-acts", DECIDE, "as_owner",
     ["(Running::Stopped, None, Standing::NewLeader, _) =>", "(Running::Stopped, None, Standing::Leader, Some(until)) =>"],
     ["(Running::Stopped, None, Standing::NewLeader, None) =>", "(Running::Stopped, None, Standing::Leader | Standing::NewLeader, Some(until)) =>"],
     [("lib", "ownership::decide::tests::only_a_leader_that_has_caught_up_starts_or_goes_on")]),
    ("claim-without-base", RECORD, "Record::claim",
     "self.expect(claim.base)?;", "",
     [("lib", "ownership::record::tests::what_does_not_fit_is_refused_and_changes_nothing")]),
    ("receipt-of-another-epoch", RECORD, "Record::stop_receipt",
     "self.expect(receipt.epoch)?;", "",
     [("lib", "ownership::record::tests::what_does_not_fit_is_refused_and_changes_nothing")]),
    ("restarted-owner-resumes", RECORD, "Record::owned_by",
     "o.device == *device && o.incarnation == incarnation", "o.device == *device && o.incarnation.0 != incarnation.0.wrapping_add(1)",
     [("lib", "ownership::record::tests::a_restarted_owner_never_resumes_its_epoch"),
      ("suite", "scenario::loss::an_owner_that_was_switched_off_never_resumes_its_epoch")]),
    ("paused-claim", ORDERS, "Record::may_claim",
     "if self.paused.is_some() &&", "if self.paused.is_some() && false &&",
     [("lib", "ownership::record::tests::while_paused_only_who_owned_last_or_was_named_claims"),
      ("lib", "ownership::decide::tests::nobody_takes_over_a_paused_site_but_who_owned_last_or_was_named"),
      ("suite", "scenario::commands::while_paused_nobody_takes_over_until_somebody_resumes")]),
    ("end-of-another-pause", ORDERS, "Record::end_pause",
     "note.id == end.pause && note.until_unix_ms.is_some()", "note.until_unix_ms.is_some()",
     [("lib", "ownership::record::tests::the_end_of_a_pause_is_that_pauses_own")]),
    ("paused-owner-moves", DECIDE, "leaving",
     "Unfit::GivesWay(_) => !paused && view.successor.is_some(),", "Unfit::GivesWay(_) => view.successor.is_some(),",
     [("lib", "ownership::decide::tests::a_paused_owner_gives_up_only_if_it_has_to_and_names_nobody")]),
    ("paused-owner-names-another", DECIDE, "leaving",
     "view.successor.filter(|_| !paused).cloned()", "view.successor.cloned()",
     [("lib", "ownership::decide::tests::a_paused_owner_gives_up_only_if_it_has_to_and_names_nobody"),
      ("suite", "scenario::commands::while_paused_an_owner_that_leaves_names_nobody_and_comes_back")]),
    ("paused-leader-stays", "src/reconcile/lease.rs", "LeaseLoop::steps_aside",
     "|| record.roles.keys().any(|d| could(&d))", "|| record.roles.keys().any(|d| could(&d)) && unfit.is_some()",
     [("suite", "scenario::commands::while_paused_the_owners_device_comes_back_as_owner")]),
    ("barren-candidates-depose", "src/reconcile/candidacy.rs", "CandidacyLoop::left_alone",
     "(barren && there).then", "(barren && there && false).then",
     [("suite", "scenario::commands::while_paused_an_owner_that_leaves_names_nobody_and_comes_back")]),
    ("witness-keeps-its-turn", "src/raft/campaign.rs", "Group::campaign",
     "result != Campaign::Won || !asks_next", "result != Campaign::Won || (!asks_next && false)",
     [("suite", "scenario::election::nobody_waits_for_a_witness_that_has_led")]),
    ("drained-while-paused-never-returns", ORDERS, "Record::goes_on",
     "self.is_held_by(device) || self.paused.is_some() && self.owned_last(device)", "self.is_held_by(device)",
     [("suite", "scenario::commands::a_paused_owner_that_was_drained_comes_back_as_owner_however_its_sidecar_ended")]),
    ("drained-device-claims", ORDERS, "Record::may_claim",
     "if !self.goes_on(device) {\n            self.is_undrained(device)?;\n        }", "",
     [("lib", "ownership::record::tests::a_drained_device_goes_on_with_what_it_owns_and_claims_nothing_else"),
      ("suite", "scenario::commands::a_drained_owner_hands_over_and_owns_no_more")]),
    ("not-stopped-passes-for-fit", "src/reconcile/pace.rs", "PaceLoop::declare",
     "_ if !stopped =>", "_ if !stopped && false =>",
     [("suite", "scenario::attack::nobody_gives_way_again_and_again_to_a_device_that_cannot_take_over")]),
    ("paused-module-counts-as-ended", "src/workload/runtime.rs", "Runtime::seen",
     "\"dead\") && !goes_on;", "\"dead\");",
     [("suite", "process::attack::a_paused_module_is_not_taken_for_one_that_has_ended")]),
    ("weeks-old-changes-counted", "src/ownership/moves.rs", "Moves::count_changes",
     "age.filter(|age| *age < HOUR)", "age",
     [("suite", "scenario::attack::old_changes_do_not_spend_the_budget_of_a_device_that_has_just_booted")]),
    ("unwell-devices-depose-each-other", "src/reconcile/candidacy.rs", "CandidacyLoop::left_alone",
     "&& (unwell || applied", "&& (false || applied",
     [("suite", "scenario::attack::a_site_on_which_nobody_is_well_is_at_rest")]),
    ("differing-device-claims", ORDERS, "Record::may_claim",
     "        self.is_unblocked(device)?;\n", "",
     [("lib", "ownership::record::builds::tests::who_differs_claims_nothing_unless_it_was_named"),
      ("suite", "scenario::builds::the_only_one_that_is_left_does_not_own_if_it_differs")]),
    ("differing-device-chosen", ORDERS, "Record::candidates",
     "self.is_undrained(device).and_then(|()| self.is_unblocked(device))", "self.is_undrained(device)",
     [("lib", "ownership::record::builds::tests::who_differs_claims_nothing_unless_it_was_named")]),
    ("majority-of-builds-ignored", "src/ownership/record/builds.rs", "Record::site_build",
     "([one], _) => Some(one),", "([one], None) => Some(one),",
     [("lib", "ownership::record::builds::tests::the_site_runs_what_most_run_and_else_what_the_owner_does"),
      ("suite", "scenario::builds::at_every_step_of_an_update_in_turn_another_follows_a_lost_owner")]),
    ("unknown-build-owns", "src/node/builds.rs", "Node::compare_builds",
     "if policy == BuildPolicy::Block {", "if policy == BuildPolicy::Block && false {",
     [("suite", "scenario::builds::a_device_that_cannot_tell_what_it_runs_does_not_own")]),
    ("drained-owner-stays", "src/reconcile/pace.rs", "PaceLoop::look",
     "|| (other_fit && !paused) =>", "=>",
     [("suite", "scenario::commands::a_drained_owner_hands_over_and_owns_no_more")]),
    ("drained-owner-gives-up-for-nobody", DECIDE, "leaving",
     "Unfit::GivesWay(_) => !paused && view.successor.is_some(),", "Unfit::GivesWay(_) => !paused,",
     [("lib", "ownership::decide::tests::a_drained_device_goes_on_where_nobody_would_follow_and_claims_nothing")]),
    ("last-device-drained", ORDERS, "Record::leaves_one",
     "*role == Role::Voter && !drained(device)", "*role == Role::Voter || !drained(device)",
     [("lib", "ownership::record::tests::a_drained_device_goes_on_with_what_it_owns_and_claims_nothing_else")]),
    ("preference-ignored", ORDERS, "Record::candidates",
     "devices.sort_by_key(|device| self.preferred.as_ref() != Some(*device));", "devices.sort_unstable();",
     [("lib", "ownership::record::tests::who_is_chosen_is_fit_by_the_record_and_the_preferred_one_first"),
      ("suite", "scenario::commands::the_preferred_device_follows_and_nothing_moves_before")]),
    ("repeat-executed", RECORD, "Record::apply",
     "once.and_then(|once| self.executed(once.id))", "once.and_then(|once| self.executed(once.id).filter(|_| false))",
     [("lib", "ownership::record::tests::a_repeat_is_answered_with_the_first_outcome_and_changes_nothing")]),
    ("unexpired-forgotten", HANDLED, "Handled::has_room",
     "held + HANDLED_SPARE < HANDLED_MAX {", "held + HANDLED_SPARE < HANDLED_MAX * 2 {",
     [("lib", "ownership::record::handled::tests::nothing_that_may_be_repeated_is_forgotten")]),
    ("floor-ignored", RECORD, "Record::claim",
     "self.epoch.max(self.floor).next()", "self.epoch.next()",
     [("lib", "ownership::record::tests::twins_raise_the_next_epoch_and_nothing_else"),
      ("suite", "scenario::commands::an_epoch_seen_in_a_twin_raises_the_next_and_moves_nothing")]),
    ("any-floor-believed", "src/ownership/record/mirrored.rs", "Record::raise_floor",
     "if above.get() > believed {", "if above.get() > believed && false {",
     [("lib", "ownership::record::tests::twins_raise_the_next_epoch_and_nothing_else")]),
    ("mirror-goes-back", "src/ownership/record/mirrored.rs", "Record::confirm_mirror",
     "*epoch > self.epoch || *epoch < before", "*epoch > self.epoch",
     [("lib", "ownership::record::tests::what_the_twins_show_never_goes_back")]),
    ("deadline-ignored", FENCE, "Fence::mind_the_clock",
     "if now >= *until =>\n            {\n                self.end(now, self.kill_after, deeds);", "if now >= *until && false =>\n            {\n                self.end(now, self.kill_after, deeds);",
     [("lib", "workload::fence::tests::the_deadline_needs_no_message"),
      ("suite", "process::fencer::a_frozen_sidecar_keeps_nothing_alive")]),
    ("deadline-goes-back", FENCE, "Fence::extend",
     "*until = (*until).max(to.min(now + HORIZON));", "*until = to.min(now + HORIZON);",
     [("lib", "workload::fence::tests::extending_moves_forward_only_and_only_the_own_epoch")]),
    ("deadline-of-another-epoch", FENCE, "Fence::extend",
     "&& *epoch == of\n", "&& epoch.get() + 9 > of.get()\n",
     [("lib", "workload::fence::tests::extending_moves_forward_only_and_only_the_own_epoch")]),
    ("deadline-without-horizon", FENCE, "Fence::extend",
     "to.min(now + HORIZON)", "to.max(now)",
     [("lib", "workload::fence::tests::extending_moves_forward_only_and_only_the_own_epoch")]),
    ("deadline-revived", FENCE, "Fence::extend",
     "            && now < *until\n", "",
     [("lib", "workload::fence::tests::a_stop_near_the_deadline_does_not_win_time")]),
    ("stop-wins-time", FENCE, "Fence::kill_at",
     "(until + self.kill_after).min(patience)", "patience",
     [("lib", "workload::fence::tests::a_stop_near_the_deadline_does_not_win_time")]),
    ("never-killed", FENCE, "Fence::mind_the_clock",
     "deeds.push(Deed::Kill);", "",
     [("lib", "workload::fence::tests::nothing_outlives_its_deadline")]),
    ("receipt-of-anybody", RECORD, "Record::is_proof",
     "seal == Some(receipt.secret.seal())", "seal.is_some()",
     [("lib", "raft::attest::tests::a_forged_receipt_changes_nothing")]),
    ("receipt-for-the-next-owner", RECORD, "Record::is_proof",
     ["filter(|o| o.epoch == receipt.epoch)", "receipt.epoch == self.epoch && seal == Some(receipt.secret.seal())"],
     ["filter(|_| true)", "seal.is_some()"],
     [("lib", "raft::attest::tests::only_the_present_owners_own_receipt_counts")]),
    ("burned-epoch-restarted", "src/workload/secrets.rs", "Secrets::lost",
     "self.burned = self.handed.take().or(self.burned);", "self.handed = None;",
     [("lib", "workload::secrets::tests::only_what_a_lost_fencer_knew_is_burned"),
      ("suite", "process::receipt::an_epoch_whose_fencer_was_lost_is_never_started_again")]),
    ("silence-forgiven", "src/workload/driver.rs", "Driver::mind_the_clock",
     "self.pulse.lost_at().is_some_and(|by| now >= by)", "false",
     [("suite", "process::last_line::a_frozen_fencer_is_noticed_long_before_the_lease_ends")]),
    ("judged-before-it-is-read", "src/workload/link.rs", "Link::has_word",
     "if self.lines.has_line() {", "if false && self.lines.has_line() {",
     [("suite", "process::lifecycle::a_frozen_sidecar_loses_the_workload_in_time_and_is_a_standby_afterwards")]),
    ("dead-line-written-for-ever", "src/workload/link.rs", "Link::flush",
     "self.deaf = !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);", "let _ = e;",
     [("lib", "workload::link::tests::what_a_fencer_said_last_is_read_although_it_takes_no_more_commands")]),
    ("silence-noticed-late", "src/workload/pulse.rs", "Pulse::ask",
     "(left / 2)", "(left * 2)",
     [("lib", "workload::pulse::tests::silence_is_noticed_before_the_lease_that_was_given_last_ends")]),
    ("end-awaited-too-long", "src/workload/driver.rs", "Driver::overdue",
     "Some(grant.until + grace / 2)", "Some(grant.until + grace * 2)",
     [("suite", "process::last_line::a_fencer_that_freezes_near_the_end_of_the_lease_is_killed_within_the_grace")]),
    ("remains-left-to-the-next-fencer", "src/workload/link.rs", "Link::bury",
     "orphans::kill(&mark, session)", "{ let _ = (mark, session); 0 }",
     [("suite", "process::last_line::what_a_killed_fencer_leaves_is_killed_also_if_there_is_no_other_fencer")]),
    ("frozen-holder-kept", "src/workload/fencer.rs", "Fencer::begin",
     "if now >= evict_at {", "if now >= evict_at && false {",
     [("suite", "process::last_line::a_frozen_fencer_of_an_earlier_life_is_killed_when_its_lease_must_be_over")]),
    ("any-fencer-evicted", "src/workload/holder.rs", "is_fencer",
     "words.nth(1) == Some(mark.as_bytes())", "words.nth(1).is_some() && mark.len() < 9999",
     [("lib", "workload::holder::tests::only_a_fencer_of_this_folder_is_killed")]),
    ("undone-too-early", "src/workload/fencer.rs", "Fencer::reap",
     "if self.fence.occupied() && empty && self.undo.is_done(&self.orders, &mut self.sidecar) {", "if self.fence.occupied() && empty && (self.undo.is_done(&self.orders, &mut self.sidecar) || true) {",
     [("suite", "process::container::what_is_undone_counts_as_the_end_of_the_workload")]),
    ("ailments-pass-it-round", "src/reconcile/pace.rs", "PaceLoop::look",
     "< BEARS && owns", "< Duration::ZERO && owns",
     [("suite", "scenario::attack::devices_that_are_unwell_again_and_again_do_not_pass_the_workload_round")]),
    ("earlier-undo-ignored", "src/workload/undo.rs", "Undo::first",
     "Undo::at_once(&earlier, whose, footing, sidecar)?;", "let _ = (&earlier, whose);",
     [("suite", "process::attack::what_an_earlier_life_has_left_is_undone_by_its_own_command")]),
    ("receipt-without-a-run", FENCE, "Fence::step",
     "if self.state == State::Idle {\n                    // Its end", "if false {\n                    // Its end",
     [("lib", "workload::fence::tests::a_run_that_has_ended_gives_no_receipt")]),
    ("sidecar-gone-ignored", FENCE, "Fence::step",
     "self.sidecar_gone = true;\n                self.end(now, self.kill_after, &mut deeds);", "self.sidecar_gone = true;",
     [("lib", "workload::fence::tests::a_lost_sidecar_ends_the_workload_and_then_the_fencer")]),
    ("mirror-without-comparison", PLAN, "plan",
     ".filter(|(_, epoch)| *epoch > published.epoch && plausible",
     ".filter(|(_, epoch)| *epoch > published.epoch + 9 && plausible",
     [("lib", "reconcile::mirror::plan::tests::one_twin_ahead_silences_the_mirror"),
      ("suite", "scenario::hub::a_stale_owner_with_a_good_line_cannot_overwrite")]),
    ("set-before-clear", PLAN, "plan",
     "(true, false) => 0,", "(true, false) => 3,",
     [("lib", "reconcile::mirror::plan::tests::the_old_flag_is_cleared_before_the_new_one_is_set")]),
    ("any-epoch-plausible", PLAN, "plausible",
     "epoch <= published.epoch.saturating_add(FLOOR_AHEAD)", "epoch != published.epoch.wrapping_sub(FLOOR_AHEAD)",
     [("lib", "reconcile::mirror::plan::tests::one_twin_ahead_silences_the_mirror"),
      ("lib", "reconcile::mirror::tests::convergence::what_is_no_flag_is_replaced_and_told_and_what_cannot_be_is_left_alone")]),
    ("noted-etag-not-named", "src/reconcile/mirror.rs", "Work::begin, Work::write",
     ["Known::Twin { etag: etag.clone(), seen, disabled: false }", "hub.patch_twin(target, &change, Some(etag))"],
     ["Known::Twin { etag: etag.get(..0).unwrap_or_default().to_owned(), seen, disabled: false }",
      "hub.patch_twin(target, &change, Some(etag).filter(|etag| !etag.is_empty()))"],
     [("lib", "reconcile::mirror::tests::convergence::a_twin_that_changed_since_it_was_confirmed_is_read")]),
    ("rollback-not-looked-for", "src/reconcile/mirror.rs", "Work::rest",
     "if due.contains(target) || odd_too && odd(known) {", "if due.len() > self.targets.len() && due.contains(target) || odd_too && odd(known) {",
     [("lib", "reconcile::mirror::tests::convergence::a_hub_that_forgets_is_noticed_repaired_and_told"),
      ("suite", "scenario::hub::a_hub_that_went_back_is_repaired_within_the_time_of_a_comparison")]),
    ("one-rollback-is-one-twins", "src/reconcile/mirror.rs", "Work::read",
     "self.known.clear();\n            }\n            self.progress.odd", "}\n            self.progress.odd",
     [("lib", "reconcile::mirror::tests::convergence::a_hub_that_forgets_is_noticed_repaired_and_told")]),
    ("two-that-mirror", "src/reconcile/uplink.rs", "part",
     "if elsewhere.is_some() { Part::None } else { Part::Owner(epoch) }", "if elsewhere.is_some() && now < Moment::default() { Part::None } else { Part::Owner(epoch) }",
     [("suite", "scenario::hub::an_owner_that_has_asked_another_to_mirror_keeps_silent_until_it_takes_that_back")]),
    ("half-a-flag", "src/reconcile/module/plan.rs", "plan",
     "if FLAG.iter().any(|name| patch.contains_key(*name)) {", "if FLAG.iter().all(|name| !patch.contains_key(*name)) && urgent {",
     [("lib", "reconcile::module::plan::tests::a_hub_that_went_back_unnoticed_shows_no_flag_that_nobody_said")]),
    ("flag-said-in-doubt", "src/reconcile/module/plan.rs", "plan",
     "target.retain(|name, _| !FLAG.contains(&name.as_str()));", "target.retain(|name, _| !name.is_empty());",
     [("lib", "reconcile::module::plan::tests::who_cannot_tell_says_no_flag")]),
    ("module-behind-speaks", "src/reconcile/module/plan.rs", "plan",
     "if shown > wanted.flag.epoch {", "if shown > wanted.flag.epoch && wanted.flag.epoch == 0 {",
     [("lib", "reconcile::module::tests::whoever_is_behind_does_not_speak")]),
    ("secret-open-to-others", "src/hub/entra/client.rs", "read_secret",
     "if mode & 0o027 != 0 {", "if mode & 0o027 != 0 && path.as_os_str().is_empty() {",
     [("lib", "hub::entra::client::tests::a_secret_is_read_from_a_closed_file_alone")]),
    ("secret-in-plain-text", "src/hub/entra/client.rs", "endpoint",
     'url.scheme() == "https"', "!url.scheme().is_empty()",
     [("lib", "hub::entra::client::tests::a_secret_goes_to_a_host_over_tls_and_nowhere_else")]),
    ("no-if-match", "src/reconcile/mirror.rs", "Work::write",
     "hub.patch_twin(target, &change, Some(etag))", "hub.patch_twin(target, &change, Some(etag).filter(|e| e.is_empty()))",
     [("lib", "reconcile::mirror::tests::a_stale_owner_that_compared_in_time_still_cannot_overwrite"),
      ("suite", "scenario::hub::a_stale_owner_with_a_good_line_cannot_overwrite")]),
    ("mark-not-compared", "src/raft/log/sled/soundness.rs", "check",
     "if contents.vote < promised.vote {", "if contents.vote < promised.vote && false {",
     [("lib", "raft::log::sled::tests::a_store_behind_its_mark_is_damaged")]),
    ("log-mark-not-compared", "src/raft/log/sled/soundness.rs", "check",
     "&& next <= last.index\n", "&& next + 99 <= last.index\n",
     [("lib", "raft::log::sled::tests::a_store_behind_its_mark_is_damaged")]),
    ("crc-not-checked", "src/raft/log/sled/values.rs", "unseal",
     "(checksum(key, content).to_le_bytes() == crc).then_some(content)", "(checksum(key, content).to_le_bytes() == crc || true).then_some(content)",
     [("lib", "raft::log::sled::tests::a_value_that_does_not_match_its_checksum_is_refused")]),
    ("store-not-synced", SLED, "durable",
     "into_io)?;\n    file.sync_data()", "into_io)?;\n    file.metadata().map(|_| ())",
     [("suite", "durability::every_acknowledged_write_was_synced_first")]),
    ("mark-not-synced", "src/raft/log/mark.rs", "MarkFile::write",
     "self.file.sync_data()?;", "",
     [("suite", "durability::every_acknowledged_write_was_synced_first")]),
    ("applied-before-durable", "src/raft/machine.rs", "Machine::apply",
     "self.ahead.up_to(last.index).await;", "self.ahead.up_to(0).await;",
     [("lib", "raft::log::tests::nothing_is_applied_before_it_is_durable_here")]),
    ("anothers-writes-ahead", "src/raft/log/mod.rs", "LogStore::is_own",
     "self.own == Some(node)\n", "self.own.is_some()\n",
     [("lib", "raft::log::tests::only_own_writes_are_ahead_of_the_disk")]),
    ("own-write-overtaken", "src/raft/log/mod.rs", "LogStore::write",
     "self.ahead.all().await?;\n        self.write_now", "self.write_now",
     [("lib", "raft::log::tests::only_own_writes_are_ahead_of_the_disk")]),
    ("commit-told-early", "src/raft/peer/client.rs", "Network::append_entries",
     "self.peers.ahead.up_to(committed.index).await", "self.peers.ahead.up_to(committed.index.min(0)).await",
     [("lib", "raft::group::tests::a_candidates_slow_disk_is_waited_for_side_by_side")]),
    ("barred-votes", GUARD, "Guard::may_vote",
     "return Err(VoteRefusal::Barred(bar));", "let _ = bar;",
     [("lib", "raft::vote_guard::tests::who_is_barred_votes_no_more"),
      ("suite", "scenario::machine::a_device_that_lost_its_store_does_not_vote")]),
    ("amnesiac-promises", GUARD, "Guard::promise",
     "return Err(PromiseRefusal::Barred(bar));", "let _ = bar;",
     [("lib", "raft::vote_guard::tests::who_has_forgotten_its_votes_promises_nothing")]),
    ("failed-write-not-barred", "src/raft/log/watched.rs", "Watched::write",
     "self.guard.bar(Bar::DiskFailed);", "let _ = (&self.guard, Bar::DiskFailed);",
     [("lib", "raft::log::tests::a_failed_write_bars_the_vote")]),
    ("no-amnesia", "src/raft/log/folder.rs", "begin_anew",
     "renewed.amnesia = Some(amnesia);", "renewed.amnesia = None;",
     [("lib", "raft::log::folder::tests::a_lost_store_is_quarantined_and_never_a_first_start")]),
    ("identity-not-checked", "src/raft/log/folder.rs", "read",
     "said != u64::from(checksum(&value))", "said != u64::from(checksum(&value)) && false",
     [("lib", "raft::log::folder::tests::no_flipped_bit_of_the_identity_is_believed")]),
    ("snapshot-not-marked", SLED, "Writer::write",
     "mark.last = mark.last.max(covered(Some(&content))?);", "covered(Some(&content))?;",
     [("lib", "raft::log::sled::tests::an_installed_snapshot_is_promised")]),
    ("adopted-not-marked", SLED, "Writer::adopt",
     "mark.vote = mark.vote.max(self.contents.vote);", "",
     [("lib", "raft::log::sled::tests::what_was_read_is_promised")]),
    ("read-from-the-cache", "src/raft/log/sled/files.rs", "settle",
     "file.sync_data()?;", "",
     [("suite", "durability::every_acknowledged_write_was_synced_first")]),
    ("sled-files-not-synced", SLED, "Writer::open",
     "sync_files(&store)?;", "",
     [("lib", "raft::log::images::no_crash_image_brings_back_an_older_store")]),
    ("leads-on-after-a-restart", "src/raft/group.rs", "Group::start",
     "vote.committed = false;", "let _ = vote;",
     [("suite", "scenario::loss::a_leader_that_restarts_leads_no_more")]),
    ("older-snapshot-wins", "src/raft/log/in_order.rs", "InOrder::write",
     "if up_to < *newest {", "if up_to < *newest && false {",
     [("lib", "raft::log::in_order::tests::no_older_snapshot_replaces_a_newer_one")]),
    ("waits-for-who-cannot-claim", "src/reconcile/lease.rs", "LeaseLoop::target",
     "other || !stopped ||", "other || (!stopped && false) ||",
     [("suite", "scenario::machine::the_fencer_of_the_next_in_rank_is_lost_for_good")]),
    ("waits-for-an-idle-leader", "src/reconcile/lease.rs", "LeaseLoop::has_time",
     ".clamp(IDLE_LIMIT, IDLE_LIMIT_MAX)", ".max(IDLE_LIMIT_MAX * 9999 + IDLE_LIMIT)",
     [("suite", "scenario::machine::the_disk_of_a_newly_elected_leader_hangs"),
      ("suite", "scenario::machine::the_owners_disk_hangs_in_the_middle_of_a_handover")]),
    ("replaced-while-present", "src/reconcile/members/plan.rs", "View::may_be_replaced",
     "self.silent(old) < PRESENT.max(self.widest * 2)", "self.silent(old) < Duration::ZERO",
     [("lib", "reconcile::members::plan::tests::a_store_that_was_heard_lately_is_not_replaced")]),
    ("replaced-within-a-wider-lease", "src/reconcile/members/plan.rs", "View::may_be_replaced",
     "PRESENT.max(self.widest * 2)", "PRESENT.max(self.site.timing.refusal() * 2)",
     [("lib", "reconcile::members::plan::tests::promises_of_a_wider_timing_are_waited_out")]),
    ("changes-without-a-window", "src/reconcile/members/plan.rs", "View::may_be_replaced",
     "if self.now.since(self.changed) < self.widest {", "if self.now.since(self.changed) < Duration::ZERO {",
     [("lib", "reconcile::members::plan::tests::members_change_one_at_a_time_with_a_window_between")]),
    ("replaced-without-majority", "src/reconcile/members/plan.rs", "View::may_be_replaced",
     "!self.members.is_quorum(|node| Some(*node) != old && heard(*node))", "!self.members.is_quorum(|_| true)",
     [("lib", "reconcile::members::plan::tests::nobody_is_replaced_without_a_majority_of_the_others")]),
    ("votes-before-it-knows", "src/reconcile/members/plan.rs", "plan",
     "Ok(()) if !view.caught_up.contains(node) =>", "Ok(()) if view.caught_up.len() > 99 =>",
     [("lib", "reconcile::members::plan::tests::a_lost_store_is_replaced_in_three_steps")]),
    ("used-store-given-up", "src/reconcile/members/plan.rs", "doubts",
     "!store.later && unused && !told.is_empty()", "!store.later && (unused || true) && !told.is_empty()",
     [("lib", "reconcile::members::plan::tests::only_an_unused_first_store_is_given_up_and_only_for_a_majority")]),
    ("forgetful-one-votes", "src/reconcile/members.rs", "MembersLoop::run",
     "self.group.guard().bar(Bar::Amnesia);", "let _ = Bar::Amnesia;",
     [("suite", "scenario::rejoin::two_emptied_devices_at_once_are_no_site_of_their_own")]),
    ("noted-store-ignored", "src/raft/peer/mod.rs", "Roster::known_store",
     "return Some(noted);", "let _ = noted;",
     [("lib", "raft::peer::porter::tests::a_later_store_is_another_node_and_the_first_never_comes_back"), ("suite", "scenario::rejoin::a_restart_of_all_others_does_not_make_the_forgetful_one_welcome")]),
    ("replaced-store-comes-back", "src/raft/peer/porter.rs", "Porter::stores_fit",
     "instead.filter(|_| node == device.first_node())", "instead.filter(|_| node != device.first_node() && false)",
     [("lib", "raft::peer::porter::tests::a_later_store_is_another_node_and_the_first_never_comes_back")]),
    ("orphans-not-adopted", "src/workload/orphans.rs", "bury",
     "while wanted() {", "while wanted() && own.is_some_and(|own| own < 0) {",
     [("suite", "process::cgroup::what_has_gone_astray_of_a_lost_fencer_is_ended_without_a_cgroup")]),
    ("half-a-joint-quorum", "src/raft/members.rs", "Members::spare",
     "self.voters.iter().map(spare)", "self.voters.iter().take(1).map(spare)",
     [("lib", "raft::members::tests::a_quorum_is_a_majority_of_every_set")]),
    ("update-two-at-a-time", "src/status/update.rs", "next_step",
     "if let Some(why) = memory.unsettled(report, goal) {", "if let Some(why) = memory.unsettled(report, goal).filter(String::is_empty) {",
     [("lib", "status::update::tests::the_standbys_then_one_handover_then_the_old_owner")]),
    ("update-without-a-majority", "src/status/update.rs", "may_lose",
     "_ => Err(loss.text.clone()),", "_ => Ok(()),",
     [("lib", "status::update::tests::no_step_is_more_than_the_site_can_bear"),
      ("lib", "status::update::tests::nothing_is_touched_that_the_site_cannot_spare")]),
    ("update-while-paused", "src/status/update.rs", "calm",
     "if let Some(paused) = &report.orders.paused {", "if let Some(paused) = report.orders.paused.as_ref().filter(|_| false) {",
     [("lib", "status::update::tests::no_step_is_more_than_the_site_can_bear")]),
    ("update-hands-over-twice", "src/status/update.rs", "next_step",
     "memory.has_handed_over && due", "memory.has_handed_over && false && due",
     [("lib", "status::update::tests::a_workload_that_comes_back_to_the_old_owner_ends_the_update")]),
    ("workload-tried-beside-a-sidecar", "src/cli/check_workload.rs", "run",
     "Ok(lock) => Some(lock),", "Ok(lock) => Some(lock).filter(|_| false),",
     [("suite", "process::exam::it_never_runs_beside_a_sidecar_that_begins")]),
    ("a-stranger-speaks-for-the-workload", "src/workload/notify.rs", "hear",
     "if orphans::belongs(sender, mark, session) =>", "if orphans::belongs(sender, mark, session) || true =>",
     [("lib", "workload::notify::tests::only_the_workloads_own_processes_are_heard")]),
    ("words-of-the-run-before", "src/workload/readiness.rs", "Readiness::of_this_run",
     "at.filter(|at| *at >= self.ordered)", "at",
     [("lib", "workload::readiness::tests::the_words_of_an_earlier_run_count_for_nothing")]),
    ("limit-that-nobody-keeps", "src/workload/limits.rs", "Limits::ways_with",
     '"processes" if !root =>', '"processes" if !root || true =>',
     [("lib", "workload::limits::tests::what_cannot_be_kept_is_refused_by_name")]),
    ("owners-words-not-renewed", "src/raft/peer/line.rs", "Line::ask",
     "(open.told.as_ref() != Some(health)).then", "open.told.is_none().then",
     [("suite", "scenario::health::every_device_knows_what_is_wrong_with_any_other_and_what_the_owners_workload_does")]),
    ("words-of-the-silent", "src/node/told.rs", "NodeDoor::told",
     "m.reachable && m.device", "m.device",
     [("suite", "process::workload::a_crashing_workload_is_restarted_with_pauses_and_shown")]),
    ("anothers-words-unchecked", "src/ownership/told.rs", "Told::heard",
     "if is_name(&name) &&", "if !name.is_empty() &&",
     [("lib", "ownership::told::tests::every_name_of_a_condition_may_be_told")]),
]


def copy():
    """A fresh copy of the tracked files; only what differs is written, so that little is built again."""
    tree = WORK / "tree"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    names = [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]
    for name in names:
        source, target = ROOT / name, tree / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for old in set(p for p in tree.rglob("*.rs")) - set(tree / name for name in names):
        old.unlink()
    return tree


def cargo(tree, *words):
    environment = dict(os.environ, CARGO_TARGET_DIR=str(WORK / "target"), RUST_BACKTRACE="0")
    done = subprocess.run(["cargo", *words], cwd=tree, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def error(out):
    return "broken: " + (re.findall(r"^error.*$", out, re.M) or ["no such test"])[0]


def run(tree, kind, test):
    which = ["--lib"] if kind == "lib" else ["--test", kind]
    _, out = cargo(tree, "test", "-q", *which, "--", "--exact", test)
    if re.search(r"^test result: ok\. 1 passed", out, re.M):
        return "passed"
    if re.search(r"^test result: FAILED\. 0 passed; 1 failed", out, re.M):
        return "failed"
    return error(out)


def simulate(tree, seeds):
    """What the simulator says about the broken tree: how many seeds failed, and for which promise."""
    code, out = cargo(tree, "sim", "--seeds", str(seeds), "--json")
    found = re.search(r"^\{.*\}$", out, re.M)
    if not found:
        return error(out)
    told = [failure["error"] for failure in json.loads(found.group())["failures"]]
    if code == 0 or not told:
        return "passed"
    promises = sorted({m.group() for text in told if (m := re.search(r"\bP[1-5] is broken|not within", text))})
    return f"failed: {len(told)} of {seeds} seeds, {', '.join(promises)}"


def broken(text, old, new):
    """The text with the bug in it, or None where it does not fit any more."""
    pairs = [(old, new)] if isinstance(old, str) else list(zip(old, new))
    for old, new in pairs:
        if text.count(old) != 1:
            return None
        text = text.replace(old, new)
    return text


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("words", nargs="*")
    options.add_argument("--some", type=int, metavar="N")
    options.add_argument("--list", action="store_true")
    options.add_argument("--sim", type=int, metavar="SEEDS")
    options.add_argument("--json", metavar="FILE")
    options = options.parse_args()
    chosen = [bug for bug in BUGS if not options.words or any(word in bug[0] for word in options.words)]
    if options.some is not None and options.some < len(chosen):
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        chosen = random.Random(commit).sample(chosen, options.some)
    stale = [bug[0] for bug in chosen if broken((ROOT / bug[1]).read_text(), bug[3], bug[4]) is None]
    if options.list:
        for name, file, function, *_, tests in chosen:
            print(f"{name}: {file}, {function}: {', '.join(test for _, test in tests)}")
    for name in stale:
        print(f"{name}: DOES NOT FIT the sources any more: anchor it anew", flush=True)
    missed, results = list(stale), {name: ["does not fit"] for name in stale}
    tree = None if options.list else copy()
    for name, file, _, old, new, tests in [] if options.list else chosen:
        if name in stale:
            continue
        path, begun = tree / file, time.monotonic()
        good = path.read_text()
        path.write_text(broken(good, old, new))
        try:
            asked = [("sim", "cargo sim")] if options.sim else tests
            for kind, test in asked:
                result = simulate(tree, options.sim) if kind == "sim" else run(tree, kind, test)
                noticed = result.startswith("failed")
                told = f"notices {result[6:].strip(': ')}".strip() if noticed else f"DOES NOT NOTICE: {result}"
                print(f"{name}: {test} {told} ({time.monotonic() - begun:.0f} s)", flush=True)
                results.setdefault(name, []).append(f"{test} {told}")
                if not noticed:
                    missed.append(name)
        finally:
            path.write_text(good)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"missed": missed, "results": results}, indent=1) + "\n")
    print(f"{len(chosen) - len(set(missed))} of {len(chosen)} {'fit' if options.list else 'noticed'}")
    if missed:
        sys.exit("not noticed: " + ", ".join(missed))


main()
