//! The rules that can be taken out, and how much of the world one exploration holds.

/// A rule of the design. Each can be taken out of the model, and must then be missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// No vote within the window of one's promise.
    PromiseWindow,
    /// The window is longer than lease and grace together.
    WindowOutlastsLease,
    /// No vote within the window of one's boot.
    BootRefusal,
    /// A restarted sidecar is somebody new and never resumes its epoch.
    NewIncarnation,
    /// Promises carry their epoch, and a receipt lifts those of its own epoch only.
    EpochInPromise,
    /// A late question for an earlier epoch does not hide the promise for the later.
    LateQuestion,
    /// No promise to a ballot below one's vote.
    HigherVote,
    /// No promise while a vote is being decided.
    PromiseWhileVoting,
    /// The lease counts from before asking.
    FromBeforeAsking,
    /// The lease is for one epoch: the promises for another are forgotten.
    LeasePerEpoch,
    /// A lease needs promises of a quorum.
    LeaseQuorum,
    /// A leader needs votes of a quorum.
    VoteQuorum,
    /// A receipt is proposed only after the end of the workload was confirmed.
    StopBeforeReceipt,
    /// An epoch whose receipt was proposed is never run again, committed or not.
    BurnedByProposal,
    /// An epoch whose fencer gave a receipt is never run again, even if the sidecar lives.
    BurnedByFencer,
    /// While the site is paused, an owner whose lease ends stops all the same.
    PauseKeepsTheLease,
}

/// Every rule.
pub const RULES: [Rule; 16] = [
    Rule::PromiseWindow,
    Rule::WindowOutlastsLease,
    Rule::BootRefusal,
    Rule::NewIncarnation,
    Rule::EpochInPromise,
    Rule::LateQuestion,
    Rule::HigherVote,
    Rule::PromiseWhileVoting,
    Rule::FromBeforeAsking,
    Rule::LeasePerEpoch,
    Rule::LeaseQuorum,
    Rule::VoteQuorum,
    Rule::StopBeforeReceipt,
    Rule::BurnedByProposal,
    Rule::BurnedByFencer,
    Rule::PauseKeepsTheLease,
];

/// What may happen in one exploration. Time, crashes, elections and lost messages are never limited.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// The rule that is taken out.
    pub without: Option<Rule>,
    /// How many epochs there can be: 1 to 3.
    pub epochs: u8,
    /// How many renewal messages can be under way at once: 1 to 3.
    pub slots: usize,
    /// Sidecars restart.
    pub restarts: bool,
    /// Owners stop of their own accord and propose receipts.
    pub receipts: bool,
    /// Fencers give receipts.
    pub fencers: bool,
    /// Claims may be committed late, and by others: a lost leader's entry that survived.
    pub late_claims: bool,
    /// Answers to renewals take time too.
    pub late_answers: bool,
    /// Between the guard's word and the vote things may happen.
    pub slow_votes: bool,
    /// The site is paused and resumed.
    pub pause: bool,
}

impl Scope {
    /// The words for what may happen besides time, elections, votes, renewals, claims and lost messages.
    pub const WORDS: [&str; 7] =
        ["restarts", "receipts", "fencers", "late_claims", "late_answers", "slow_votes", "pause"];

    /// So many epochs, so many renewals under way, and what else may happen, in [`Scope::WORDS`].
    pub fn new(epochs: u8, slots: usize, words: &str) -> Scope {
        assert!(
            words.split_whitespace().all(|w| Scope::WORDS.contains(&w)),
            "{words:?} are not all known words"
        );
        let says = |word| words.split_whitespace().any(|w| w == word);
        Scope {
            without: None,
            epochs,
            slots,
            restarts: says("restarts"),
            receipts: says("receipts"),
            fencers: says("fencers"),
            late_claims: says("late_claims"),
            late_answers: says("late_answers"),
            slow_votes: says("slow_votes"),
            pause: says("pause"),
        }
    }

    /// Whether the rule is in force.
    pub fn holds(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }
}
