//! Names and moments that no event can mean any more are let go: once a grace period is over, every program judges by what is
//! in force now, and once the ring was read as far as it was written then, nothing of what was before is still to come.

use std::collections::{BTreeMap, VecDeque};

use super::Engine;
use crate::kernel::{Passing, give_back_memory};
use crate::stack::STACK;

/// What was in force at one moment, and how far it is that nothing older can come.
#[derive(Debug)]
pub(crate) struct Outlived {
    generation: u32,
    epochs: BTreeMap<String, u32>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Programs may still judge by what was before.
    Judging(Passing),
    /// Their events are in the ring, below this.
    Written(u64),
}

impl Engine {
    /// Goes on with letting go, as far as it can be without waiting. Called every second, when the ring was just read.
    pub(super) fn let_go(&mut self) {
        let Some(outlived) = self.outlived.take() else {
            self.outlived = self.outlive();
            return;
        };
        let written = match &outlived.stage {
            Stage::Judging(passing) => match passing.poll() {
                None => None,
                Some(Err(_)) => return, // Begun anew with the next second.
                Some(Ok(())) => Some(self.kernel.written()),
            },
            Stage::Written(written) => Some(*written),
        };
        let Some(written) = written else {
            self.outlived = Some(outlived);
            return;
        };
        if self.kernel.read() < written || self.losses.holds() {
            self.outlived = Some(Outlived { stage: Stage::Written(written), ..outlived });
            return;
        }
        let known = std::mem::take(&mut self.generations).into_iter();
        let (kept, gone): (_, VecDeque<_>) = known.partition(|(number, _)| *number >= outlived.generation);
        self.generations = kept;
        // An epoch goes round after four thousand million changes; what is not the one in force is older.
        let is = |account: &str, epoch: u32| outlived.epochs.get(account).is_none_or(|in_force| *in_force <= epoch);
        self.moments.retain(|(_, epoch), moment| is(&moment.account, *epoch));
        if !gone.is_empty() {
            dispose(gone);
        }
    }

    /// What is in force now, if there is anything to let go for it.
    fn outlive(&self) -> Option<Outlived> {
        let generation = self.generations.back()?.0;
        if self.generations.len() == 1 && self.moments.len() <= self.epochs.len() {
            return None;
        }
        let stage = Stage::Judging(self.kernel.begin_barrier());
        Some(Outlived { generation, epochs: self.epochs.clone(), stage })
    }
}

/// Frees what is gone, and gives its memory back, beside the engine: the names of a thousand accounts take a third of a second.
/// Not on a thread that stands back: it holds the allocator's locks now and then, which the engine would wait for.
fn dispose<T: Send + 'static>(gone: T) {
    // Without a thread it is dropped here, as the closure is.
    let _ = std::thread::Builder::new().name("dispose".into()).stack_size(STACK).spawn(move || {
        drop(gone);
        give_back_memory();
    });
}
