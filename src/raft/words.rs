//! What openraft reports, in plain words: its own texts show log positions as the code sees them, which tell nobody what to do.

use std::error::Error as _;

use openraft::error::{ChangeMembershipError, ClientWriteError, Fatal, Infallible, RaftError};

use super::types::{Device, StorageError};
use crate::id::NodeId;

/// Why Raft has stopped here. Only a restart helps.
pub(super) fn stopped(why: &Fatal<u64>) -> String {
    match why {
        Fatal::StorageError(e) => stored(e),
        Fatal::Panicked => "it has met a fault of its own".into(),
        Fatal::Stopped => "it was told to stop".into(),
    }
}

/// What the store has reported.
fn stored(why: &StorageError) -> String {
    match (why, why.source()) {
        (StorageError::IO { .. }, Some(cause)) => {
            let cause = cause.to_string();
            format!("the store failed: {}", cause.trim_start_matches("std::io::error::Error: "))
        }
        (StorageError::IO { .. }, None) => "the store failed".into(),
        (StorageError::Defensive { .. }, _) => "the store does not hold what it should".into(),
    }
}

/// Why a call to Raft failed that it never refuses.
pub(super) fn failed(why: &RaftError<u64, Infallible>) -> String {
    match why {
        RaftError::Fatal(why) => stopped(why),
        RaftError::APIError(never) => match *never {},
    }
}

/// Why a command, or a change of the members, was not taken.
pub(super) fn refused(why: &ClientWriteError<u64, Device>) -> String {
    use ChangeMembershipError::{EmptyMembership, InProgress, LearnerNotFound};
    match why {
        ClientWriteError::ForwardToLeader(_) => "this device does not lead the group any more".into(),
        ClientWriteError::ChangeMembershipError(InProgress(_)) => {
            "an earlier change of the members is not agreed by a majority yet; it is tried again".into()
        }
        ClientWriteError::ChangeMembershipError(EmptyMembership(_)) => "no voter would be left".into(),
        ClientWriteError::ChangeMembershipError(LearnerNotFound(unknown)) => {
            format!("the store {} is not known to the group yet", NodeId(unknown.node_id))
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::{
        CommittedLeaderId, ErrorSubject, ErrorVerb,
        error::{EmptyMembership, ForwardToLeader, InProgress, LearnerNotFound},
    };

    use super::{super::types::LogId, *};

    #[test]
    fn nobody_is_shown_how_the_code_sees_it() {
        let id = LogId::new(CommittedLeaderId::new(7, 8), 9);
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let io = |subject| StorageError::from_io_error(subject, ErrorVerb::Write, full());
        let changes = [
            ChangeMembershipError::InProgress(InProgress {
                committed: Some(id),
                membership_log_id: Some(id),
            }),
            ChangeMembershipError::EmptyMembership(EmptyMembership {}),
            ChangeMembershipError::LearnerNotFound(LearnerNotFound { node_id: 8 }),
        ];
        let mut texts: Vec<String> = changes.map(|e| refused(&ClientWriteError::from(e))).into();
        texts.push(refused(&ClientWriteError::ForwardToLeader(ForwardToLeader::empty())));
        texts.extend(
            [Fatal::StorageError(io(ErrorSubject::Log(id))), Fatal::Panicked, Fatal::Stopped]
                .map(|e| failed(&RaftError::Fatal(e))),
        );
        assert_eq!(texts[4], "the store failed: no storage space");
        for text in texts {
            assert!(!text.contains(['{', '}']) && !text.contains("::") && !text.contains("Some("), "{text}");
        }
    }
}
