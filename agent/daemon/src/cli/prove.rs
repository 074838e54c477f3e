//! `writ prove ID`: one record with everything needed to check it, as a C2SP tlog-proof.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use writ_core::log::{Checkpoint, ProofError, TileNodes, TilePath, TlogProof, inclusion_proof};

use super::find::by_id;
use super::output;
use crate::log::{Layout, own_key, tile_hashes};

/// How long a record is waited for to be signed: the daemon signs every second.
const SIGNED_WITHIN: Duration = Duration::from_millis(2_500);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(50);

/// Options of `prove`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ProveArgs {
    /// The record's id
    pub id: String,
    /// The log directory, such as a copy; without it, the configured one
    #[arg(long, value_name = "LOGDIR")]
    pub log: Option<PathBuf>,
}

/// Writes the proof of a record to the standard output.
pub(crate) fn prove(args: &ProveArgs, log: &Path) -> anyhow::Result<ExitCode> {
    let proof = proof_of(&args.id, args.log.as_deref().unwrap_or(log))?;
    write!(std::io::stdout().lock(), "{proof}")?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn proof_of(id: &str, log: &Path) -> anyhow::Result<TlogProof> {
    let layout = Layout::new(log);
    let Some(found) = by_id(log, id)? else { return Err(output::not_found(format!("no record has the id `{id}`"))) };
    let Some(key) = own_key(&layout, &mut Vec::new()) else { bail!("{} is missing", layout.vkey().display()) };
    // The daemon signs every second; a proof needs one checkpoint that covers the record, and the tiles it was made of,
    // which may be replaced between the two reads.
    let mut failure = None;
    let patience = Instant::now() + SIGNED_WITHIN;
    let mut attempts = 0;
    while attempts < 5 {
        let note = std::fs::read_to_string(layout.checkpoint())
            .with_context(|| format!("cannot read {}", layout.checkpoint().display()))?;
        let checkpoint = Checkpoint::open(&note, &key)?;
        if found.index >= checkpoint.size && Instant::now() < patience {
            std::thread::sleep(LOOK);
            continue;
        }
        attempts += 1;
        if found.index >= checkpoint.size {
            let (index, size) = (found.index, checkpoint.size);
            return Err(output::not_found(format!(
                "record {index} is not signed yet: the last checkpoint covers {size} records"
            )));
        }
        let fetch = |tile: TilePath| {
            tile_hashes(&layout, tile)
                .map_err(|error| ProofError::Tile { name: tile.to_string(), reason: error.to_string() })
        };
        let nodes = TileNodes { size: checkpoint.size, fetch };
        match inclusion_proof(found.index, checkpoint.size, &nodes) {
            Ok(hashes) => {
                let proof = TlogProof { extra: Some(found.line.clone()), index: found.index, hashes, checkpoint: note };
                // Never hand out a proof that does not hold.
                proof
                    .verify(&found.line, &key)
                    .context("the log is not what its checkpoint signs: run `writ verify`")?;
                return Ok(proof);
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.map_or_else(|| anyhow::anyhow!("no proof could be made"), anyhow::Error::from))
}
