//! Reading a log that may be written meanwhile: each line once, across rotation, restarts and removed segments.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Layout, LineError, LogError, SegmentLines};

/// A place in the log that moves forward.
pub(crate) struct Follow {
    layout: Layout,
    open: Option<Open>,
    /// Index of the next line.
    index: u64,
}

struct Open {
    first: u64,
    file: (u64, u64),
    lines: SegmentLines,
}

impl Follow {
    /// From the oldest line that is retained.
    pub(crate) fn from_start(dir: &Path) -> Self {
        Self { layout: Layout::new(dir), open: None, index: 0 }
    }

    /// From the line with this index, or the oldest retained after it.
    pub(crate) fn from_index(dir: &Path, index: u64) -> Self {
        Self { layout: Layout::new(dir), open: None, index }
    }

    /// Index of the next line, as far as is known: retention may have removed it.
    pub(crate) const fn index(&self) -> u64 {
        self.index
    }

    /// The next whole line with its index; `None` if there is none now: ask again later.
    pub(crate) fn next_line(&mut self) -> Result<Option<(u64, Vec<u8>)>, LogError> {
        loop {
            let Some(open) = &mut self.open else {
                if self.open_segment()? {
                    continue;
                }
                return Ok(None);
            };
            match open.lines.next_line() {
                Ok(Some(line)) => {
                    let line = line.to_vec();
                    self.index += 1;
                    return Ok(Some((self.index - 1, line)));
                }
                // Half a line is being written, or was when the writer died: it is whole or gone later.
                Err(LineError::Torn { .. }) => {}
                Err(LineError::Log(error)) => return Err(error),
                Ok(None) => {}
            }
            if !self.move_on()? {
                return Ok(None);
            }
        }
    }

    /// At the end of the open segment: whether there is another one to read. The next segment is named after the index
    /// of its first line, so that nothing can be missed in between.
    fn move_on(&mut self) -> Result<bool, LogError> {
        let Some(open) = &self.open else { return Ok(true) };
        if open.first != self.index && self.layout.segment(self.index).exists() {
            self.open = None;
            return Ok(true);
        }
        let path = self.layout.segment(open.first);
        let data = path.metadata().ok();
        if data.as_ref().is_some_and(|data| (data.dev(), data.ino()) == open.file) {
            // Cut back behind what was read: its last lines went on in a segment of their own (see `LogWriter`).
            if data.is_none_or(|data| data.len() >= open.lines.offset()) {
                return Ok(false);
            }
            self.open = None;
            return self.open_segment();
        }
        // Its lines were written again, into another file under the name: see `LogWriter`.
        if let Some(open) = &mut self.open
            && open.lines.begins_like(&path)
        {
            self.open = None;
            return self.open_segment();
        }
        // The log was moved aside and another begun, or the segment was removed before it was read to its end.
        let segments = self.layout.segments()?;
        let begins_anew = segments.first().is_some_and(|(first, _)| *first == 0);
        if begins_anew && self.open.take().is_some() {
            self.index = 0;
            return Ok(true);
        }
        let later = segments.iter().any(|(first, _)| *first >= self.index);
        if later {
            self.open = None;
        }
        Ok(later)
    }

    /// Opens the segment with the line at `index`, or the first after it; `false` if there is none.
    fn open_segment(&mut self) -> Result<bool, LogError> {
        let segments = self.layout.segments()?;
        let place = segments.partition_point(|(first, _)| *first <= self.index).saturating_sub(1);
        let Some((first, path)) = segments.get(place) else { return Ok(false) };
        let mut lines = match SegmentLines::open(path) {
            // Pruned since it was listed: there is another first one.
            Err(_) if !path.exists() => return self.open_segment(),
            opened => opened?,
        };
        let data = path.metadata().map_err(LogError::io("look at", path))?;
        let mut index = *first;
        while index < self.index {
            match lines.next_line() {
                Ok(Some(_)) => index += 1,
                // The line asked for is not there yet.
                Ok(None) | Err(LineError::Torn { .. }) => return Ok(false),
                Err(LineError::Log(error)) => return Err(error),
            }
        }
        self.index = index;
        self.open = Some(Open { first: *first, file: (data.dev(), data.ino()), lines });
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Log, lines};
    use super::*;

    fn drain(follow: &mut Follow) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| follow.next_line().unwrap()).map(|(_, line)| line).collect()
    }

    #[test]
    fn a_follower_gets_every_line_once_across_rotation_and_restart() {
        let log = Log::new(5_000);
        let mut follow = Follow::from_start(&log.dir());
        assert_eq!(drain(&mut follow), Vec::<Vec<u8>>::new());
        let mut found = Vec::new();
        let mut size = 0;
        for round in 0..40u64 {
            let (mut writer, _) = log.open();
            for step in [1, 7, round % 29] {
                writer.append(&lines(size..size + step)).unwrap();
                size += step;
                found.extend(drain(&mut follow));
            }
            if round % 3 == 0 {
                writer.close().unwrap();
            }
        }
        assert_eq!(found, lines(0..size));
        let mut middle = Follow::from_index(&log.dir(), 100);
        assert_eq!(drain(&mut middle), lines(100..size));
    }

    #[test]
    fn half_a_line_is_not_given_out_before_it_is_whole() {
        let log = Log::of(3, 1 << 20);
        let path = Layout::new(&log.dir()).segment(0);
        let mut follow = Follow::from_start(&log.dir());
        assert_eq!(drain(&mut follow).len(), 3);
        let mut content = std::fs::read(&path).unwrap();
        content.extend_from_slice(b"{\"a\":");
        std::fs::write(&path, &content).unwrap();
        assert_eq!(drain(&mut follow).len(), 0);
        content.extend_from_slice(b"1}\n");
        std::fs::write(&path, &content).unwrap();
        assert_eq!(drain(&mut follow), [b"{\"a\":1}"]);
    }

    #[test]
    fn a_follower_gets_no_line_twice_where_lines_went_on_in_another_file_after_a_failing_disk() {
        let text =
            |lines: Vec<Vec<u8>>| lines.iter().flat_map(|line| [line, b"\n".as_slice()].concat()).collect::<Vec<_>>();
        let log = Log::of(10, 1 << 20);
        let layout = Layout::new(&log.dir());
        let mut follow = Follow::from_start(&log.dir());
        assert_eq!(drain(&mut follow), lines(0..10));
        // Cut back, and continued under the number of the first line that was in doubt.
        std::fs::write(layout.segment(6), text(lines(6..12))).unwrap();
        let old = std::fs::OpenOptions::new().write(true).open(layout.segment(0)).unwrap();
        old.set_len(text(lines(0..6)).len() as u64).unwrap();
        assert_eq!(drain(&mut follow), lines(10..12));
        // All of a segment was in doubt: another file has its name.
        std::fs::write(log.dir().join("new"), text(lines(6..15))).unwrap();
        std::fs::rename(log.dir().join("new"), layout.segment(6)).unwrap();
        assert_eq!(drain(&mut follow), lines(12..15));
    }

    #[test]
    fn a_follower_goes_on_with_the_log_that_took_the_place() {
        let log = Log::of(10, 1 << 20);
        let mut follow = Follow::from_start(&log.dir());
        assert_eq!(drain(&mut follow).len(), 10);
        let (mut writer, _) = log.open_as("writ.test/another").unwrap();
        writer.append(&lines(50..52)).unwrap();
        assert_eq!(drain(&mut follow), lines(50..52));
    }
}
