//! The log's mathematics and formats, without a file in sight: RFC 6962 tree, C2SP tiles, checkpoints, notes and proofs.
//!
//! A line's bytes (without the newline) are a leaf. [`Edge`] grows the tree and hands out tiles; [`Checkpoint`] signs its
//! head; [`inclusion_proof`] and [`consistency_proof`] answer an auditor from tiles alone.

mod bundle;
mod checkpoint;
mod edge;
mod note;
mod proof;
mod pruned;
#[cfg(test)]
mod tests;
mod tile;
mod tlog_proof;
mod tree;

pub use bundle::{decode_bundle, encode_entry};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use edge::{Edge, FullTile};
pub use note::{NoteError, NoteSigner, SignedNote, Vkey};
pub use proof::{Leaves, Nodes, ProofError, consistency_proof, inclusion_proof, verify_consistency, verify_inclusion};
pub use pruned::Pruned;
pub use tile::{TILE_WIDTH, TileKind, TileNodes, TilePath, widths};
pub use tlog_proof::{TlogProof, TlogProofError};
pub use tree::{EMPTY_ROOT, Hash, hash_children, hash_leaf, root_of};
