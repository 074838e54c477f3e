//! What a log says about a boot's attempts from one line on: recorded, or written off.

use writ_core::record::{Head, Ledger, WrittenOff};

use super::{Layout, LogError, SegmentLines};

/// Brings a ledger of one boot up to date with the lines from `from` on.
pub(crate) fn replay_attempts(layout: &Layout, from: u64, boot: &str, ledger: &mut Ledger) -> Result<(), LogError> {
    let segments = layout.segments()?;
    let begin = segments.partition_point(|(first, _)| *first <= from).saturating_sub(1);
    for (first, path) in segments.iter().skip(begin) {
        let mut lines = SegmentLines::open(path)?;
        let mut index = *first;
        // A torn end was cut off when the log was opened.
        while let Ok(Some(line)) = lines.next_line() {
            if index >= from
                && let Ok(head) = Head::of(line)
                && head.host.boot_id == boot
            {
                take(&head, ledger);
            }
            index += 1;
        }
    }
    Ok(())
}

fn take(head: &Head<'_>, ledger: &mut Ledger) {
    match (head.kernel, head.cpu, head.from_sequence, head.to_sequence, head.count) {
        (Some(kernel), ..) => {
            ledger.arrived(kernel.cpu, kernel.sequence);
        }
        (None, Some(cpu), Some(from), Some(to), Some(count)) => {
            ledger.written_off(WrittenOff { cpu, from, to, count });
        }
        _ => {}
    }
}
