use proptest::prelude::*;

use super::*;
use crate::{
    id::SiteId,
    raft::members::Node,
    site::{Member, Role},
    timing::{Settings, Timing},
};

/// Long after anything that happened.
const NOW: Moment = Moment::from_nanos(3_600_000_000_000);

fn device(n: usize) -> DeviceId {
    DeviceId::new(format!("edge-{n}")).expect("a name")
}

fn site(devices: usize) -> Site {
    let member = |n| Member { device: device(n), address: format!("10.0.0.{n}:7600"), role: Role::Voter };
    Site {
        id: SiteId::new("plant-7").expect("a name"),
        members: (0..devices).map(member).collect(),
        timing: Timing::new(&Settings::default()).expect("consistent"),
    }
}

fn contact(n: usize, heard: Moment, store: u64, joins: bool) -> Contact {
    Contact { device: Some(device(n)), heard: Some(heard), store: Some(store), joins, ..Contact::default() }
}

/// A site that device 0 leads. The last device was silent for an hour and has come back with store 7.
struct Story {
    site: Site,
    members: Members,
    contacts: BTreeMap<NodeId, Contact>,
    caught_up: BTreeSet<NodeId>,
    leads_since: Moment,
    changed: Moment,
    widest: Duration,
}

impl Story {
    fn new(devices: usize) -> Story {
        let nodes: BTreeMap<NodeId, Node> = (0..devices)
            .map(|n| (device(n).first_node(), Node { device: device(n), store: Some(1) }))
            .collect();
        let mut contacts: BTreeMap<NodeId, Contact> =
            (1..devices - 1).map(|n| (device(n).first_node(), contact(n, NOW, 1, false))).collect();
        contacts.insert(device(devices - 1).later_node(7), contact(devices - 1, NOW, 7, true));
        let site = site(devices);
        Story {
            widest: site.timing.refusal(),
            site,
            members: Members { voters: vec![nodes.keys().copied().collect()], nodes },
            contacts,
            caught_up: BTreeSet::new(),
            leads_since: Moment::default(),
            changed: Moment::default(),
        }
    }

    fn view(&self) -> View<'_> {
        View {
            now: NOW,
            me: device(0).first_node(),
            store: 1,
            site: &self.site,
            widest: self.widest,
            hold: self.site.timing.hold(),
            members: &self.members,
            contacts: &self.contacts,
            caught_up: &self.caught_up,
            leads_since: self.leads_since,
            changed: self.changed,
        }
    }

    fn step(&self) -> Option<Step> {
        plan(&self.view()).step
    }

    fn waits_for(&self, why: &str) {
        let plan = plan(&self.view());
        assert_eq!(plan.step, None);
        assert!(plan.rejoining.values().any(|said| said.contains(why)), "{plan:?}");
    }

    fn newcomer(&self) -> (NodeId, DeviceId) {
        let device = device(self.site.members.len() - 1);
        (device.later_node(7), device)
    }

    /// The newcomer was admitted.
    fn learning(mut self) -> Story {
        let (node, device) = self.newcomer();
        self.members.nodes.insert(node, Node { device, store: Some(7) });
        self
    }
}

#[test]
fn a_lost_store_is_replaced_in_three_steps() {
    let mut story = Story::new(3);
    let (node, of) = story.newcomer();
    assert_eq!(story.step(), Some(Step::Admit { node, device: of.clone(), store: 7 }));
    story = story.learning();
    story.waits_for("learns what the others know");
    story.caught_up.insert(node);
    let mut voters = story.members.all_voters();
    voters.remove(&of.first_node());
    voters.insert(node);
    assert_eq!(story.step(), Some(Step::Exchange { voters: voters.clone() }));
    story.members.voters.push(voters.clone());
    assert_eq!(story.step(), Some(Step::Finish), "whoever began it");
    story.members.voters.remove(0);
    story.members.nodes.remove(&of.first_node());
    assert_eq!(plan(&story.view()), Plan::default());
}

#[test]
fn a_store_that_was_heard_lately_is_not_replaced() {
    for learns in [false, true] {
        let mut story = Story::new(3);
        let (node, of) = story.newcomer();
        if learns {
            story = story.learning();
            story.caught_up.insert(node);
        }
        let heard = NOW.before(PRESENT).max(Moment::default()) + Duration::from_millis(1);
        story.contacts.insert(of.first_node(), contact(2, heard, 1, false));
        story.waits_for("may still be there");
        story.contacts.insert(of.first_node(), contact(2, NOW.before(PRESENT), 1, false));
        assert!(story.step().is_some());
        story.leads_since = heard;
        story.waits_for("may still be there");
    }
}

#[test]
fn members_change_one_at_a_time_with_a_window_between() {
    let mut story = Story::new(3);
    story.changed = NOW.before(story.site.timing.refusal()) + Duration::from_millis(1);
    story.waits_for("just now");
    story.changed = NOW.before(story.site.timing.refusal());
    assert!(story.step().is_some());
}

/// A lease of the stretched timing may count on what the lost store promised for longer than it takes to call it lost.
#[test]
fn promises_of_a_wider_timing_are_waited_out() {
    let mut story = Story::new(3);
    let (_, of) = story.newcomer();
    story.widest = Duration::from_secs(60);
    for (silent, may) in
        [(PRESENT, false), (Duration::from_secs(119), false), (Duration::from_secs(120), true)]
    {
        story.contacts.insert(of.first_node(), contact(2, NOW.before(silent), 1, false));
        assert_eq!(story.step().is_some(), may, "{silent:?}");
    }
    story.changed = NOW.before(Duration::from_secs(59));
    story.waits_for("just now");
}

#[test]
fn nobody_is_replaced_without_a_majority_of_the_others() {
    let mut story = Story::new(3);
    let other = device(1).first_node();
    story.contacts.get_mut(&other).expect("known").heard = Some(NOW.before(story.site.timing.hold()));
    story.waits_for("no majority without it");
}

#[test]
fn the_leader_never_replaces_itself() {
    let story = Story::new(3);
    let why = story.view().may_be_replaced(Some(device(0).first_node())).expect_err("it leads");
    assert!(why.contains("leads"), "{why}");
}

#[test]
fn who_has_gone_again_is_forgotten() {
    let mut story = Story::new(3).learning();
    let (node, of) = story.newcomer();
    story.contacts.insert(node, contact(2, NOW.before(PRESENT), 7, true));
    assert_eq!(story.step(), Some(Step::Drop { node }));
    // It was emptied once more meanwhile: first one goes, then the other comes.
    story.contacts.insert(of.later_node(8), contact(2, NOW, 8, true));
    assert_eq!(story.step(), Some(Step::Drop { node }));
    story.members.nodes.remove(&node);
    assert_eq!(story.step(), Some(Step::Admit { node: of.later_node(8), device: of, store: 8 }));
}

#[test]
fn stores_are_noted_once_they_are_known() {
    let mut story = Story::new(3);
    story.contacts.remove(&story.newcomer().0);
    assert_eq!(story.step(), None);
    for n in [0, 2] {
        story.members.nodes.get_mut(&device(n).first_node()).expect("known").store = None;
    }
    let note = Step::Note { stores: [(device(0).first_node(), (device(0), 1))].into() };
    assert_eq!(story.step(), Some(note.clone()));
    story.leads_since = NOW.before(SETTLED) + Duration::from_millis(1);
    assert_eq!(story.step(), None, "the claim comes first");
    story.leads_since = Moment::default();
    story.members.nodes.get_mut(&device(0).first_node()).expect("known").store = Some(1);
    assert_eq!(story.step(), None, "the other has not shown its store");
}

#[test]
fn only_an_unused_first_store_is_given_up_and_only_for_a_majority() {
    let site = site(3);
    let told = |n: usize| (1..=n).map(device).collect::<BTreeSet<_>>();
    let (first, later) = (StoreId { number: 2, later: false }, StoreId { number: 2, later: true });
    assert!(!doubts(first, true, &told(0)) && doubts(first, true, &told(1)));
    assert!(!doubts(first, false, &told(2)), "what it has promised is worth keeping");
    assert!(!doubts(later, true, &told(2)), "it is somebody new already");
    assert!(!starts_over(first, true, &told(1), &site), "one cannot take it in");
    assert!(starts_over(first, true, &told(2), &site));
    assert!(!starts_over(first, false, &told(2), &site));
    assert!(!starts_over(later, true, &told(2), &site));
}

proptest! {
    /// Whatever is known: who votes changes by one node of one device, whose old node was silent for two windows, no
    /// sooner than a window after the last change, and with a majority of others present.
    #[test]
    fn an_exchange_is_always_a_safe_one(
        devices in 3usize..6,
        heard_ms in proptest::collection::vec(0u64..60_000, 5),
        newcomer_ms in 0u64..60_000,
        leads_ms in 0u64..60_000,
        changed_ms in 0u64..30_000,
        widest_ms in 0u64..20_000,
        caught_up: bool,
        replaced in 0usize..5,
    ) {
        let replaced = replaced % devices;
        let ago = |ms: u64| NOW.before(Duration::from_millis(ms));
        let mut story = Story::new(devices);
        story.contacts.clear();
        for (n, ms) in heard_ms.iter().copied().enumerate().take(devices).skip(1) {
            // Mostly present, so that there is something to decide.
            let ms = if n == replaced || ms.is_multiple_of(3) { ms } else { 0 };
            story.contacts.insert(device(n).first_node(), contact(n, ago(ms), 1, false));
        }
        let new = device(replaced).later_node(7);
        story.members.nodes.insert(new, Node { device: device(replaced), store: Some(7) });
        story.contacts.insert(new, contact(replaced, ago(newcomer_ms), 7, true));
        story.leads_since = ago(leads_ms);
        story.changed = ago(changed_ms);
        story.widest = story.widest.max(Duration::from_millis(widest_ms));
        if caught_up {
            story.caught_up.insert(new);
        }
        if let Some(Step::Exchange { voters }) = story.step() {
            let before = story.members.all_voters();
            let out: Vec<_> = before.difference(&voters).copied().collect();
            let old = device(replaced).first_node();
            prop_assert_eq!(&out, &vec![old]);
            prop_assert_eq!(voters.difference(&before).copied().collect::<Vec<_>>(), vec![new]);
            prop_assert!(caught_up && replaced != 0);
            let timing = &story.site.timing;
            prop_assert!(story.contacts[&old].heard.is_some_and(|h| NOW.since(h) >= story.widest * 2));
            prop_assert!(NOW.since(story.leads_since) >= story.widest * 2);
            prop_assert!(NOW.since(story.changed) >= story.widest);
            let present = (1..devices).filter(|n| *n != replaced);
            let present = present.filter(|n| heard_ms[*n] % 3 != 0 || heard_ms[*n] == 0 || Duration::from_millis(heard_ms[*n]) < timing.hold());
            prop_assert!(present.count() + 1 >= story.site.quorum());
        }
    }

    /// What the argument rests on: any majority that promised without the old node meets any majority that elects after
    /// the exchange in a node that is in both.
    #[test]
    fn promises_before_an_exchange_meet_votes_after_it(devices in 1usize..10, promised: u16, votes: u16) {
        let bit = |set: u16, n: usize| set >> n & 1 == 1;
        let majority = devices / 2 + 1;
        // Node 0 is replaced by node `devices`.
        let promised: BTreeSet<_> = (1..devices).filter(|n| bit(promised, *n)).collect();
        let votes: BTreeSet<_> = (1..=devices).filter(|n| bit(votes, *n)).collect();
        if promised.len() >= majority && votes.len() >= majority {
            prop_assert!(!promised.is_disjoint(&votes));
        }
    }
}
