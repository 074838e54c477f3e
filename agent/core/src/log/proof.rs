//! Inclusion and consistency proofs of RFC 6962, made from any source of nodes and checked from hashes alone.

use super::tree::{Hash, hash_children, root_of};

/// Why a proof could not be made or does not hold.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProofError {
    /// A node that is not there.
    #[error("the tree has no node {index} at level {level}")]
    Node {
        /// Height above the leaves.
        level: u8,
        /// Index at that height.
        index: u64,
    },
    /// A tile that cannot be read.
    #[error("tile/{name}: {reason}")]
    Tile {
        /// Its name below `tile/`.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Indices that make no sense.
    #[error("no such leaf or tree: {0}")]
    Range(String),
    /// The proof has too many or too few hashes.
    #[error("the proof has the wrong length")]
    Length,
    /// The hashes lead to another root.
    #[error("the proof does not lead to the root")]
    Root,
}

/// Complete subtrees of a tree.
pub trait Nodes {
    /// The hash of the complete subtree with `2^level` leaves that starts at leaf `index * 2^level`.
    fn subtree(&self, level: u8, index: u64) -> Result<Hash, ProofError>;
}

/// Nodes from leaf hashes in memory.
pub struct Leaves<'a>(pub &'a [Hash]);

impl Nodes for Leaves<'_> {
    fn subtree(&self, level: u8, index: u64) -> Result<Hash, ProofError> {
        let missing = ProofError::Node { level, index };
        let size = 1u64.checked_shl(u32::from(level)).ok_or(missing.clone())?;
        let start = index.checked_mul(size).ok_or(missing.clone())?;
        let end = start.checked_add(size).ok_or(missing.clone())?;
        match (usize::try_from(start), usize::try_from(end)) {
            (Ok(start), Ok(end)) => self.0.get(start..end).map(root_of).ok_or(missing),
            _ => Err(missing),
        }
    }
}

/// The hash over the leaves `start..end`, where `start` is a multiple of the next power of two of the length.
fn range(nodes: &impl Nodes, start: u64, end: u64) -> Result<Hash, ProofError> {
    let length = end - start;
    if length.is_power_of_two() {
        let level = length.trailing_zeros() as u8;
        return nodes.subtree(level, start >> level);
    }
    let split = start + length.next_power_of_two() / 2;
    Ok(hash_children(&range(nodes, start, split)?, &range(nodes, split, end)?))
}

/// The proof that leaf `index` is in the tree of `size` leaves: from the leaf's sibling to the root's child.
pub fn inclusion_proof(index: u64, size: u64, nodes: &impl Nodes) -> Result<Vec<Hash>, ProofError> {
    if index >= size {
        return Err(ProofError::Range(format!("leaf {index} of {size}")));
    }
    let mut proof = Vec::new();
    let (mut start, mut end) = (0, size);
    while end - start > 1 {
        let split = start + (end - start).next_power_of_two() / 2;
        if index < split {
            proof.push(range(nodes, split, end)?);
            end = split;
        } else {
            proof.push(range(nodes, start, split)?);
            start = split;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Checks an inclusion proof (RFC 9162, 2.1.3.2).
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Range(format!("leaf {index} of {size}")));
    }
    let (mut place, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if place & 1 == 1 || place == last {
            hash = hash_children(sibling, &hash);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            hash = hash_children(&hash, sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    match (last, hash == *root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Length),
    }
}

/// The proof that the tree of `old` leaves is the beginning of the tree of `new` leaves.
pub fn consistency_proof(old: u64, new: u64, nodes: &impl Nodes) -> Result<Vec<Hash>, ProofError> {
    if old == 0 || old > new {
        return Err(ProofError::Range(format!("from {old} to {new} leaves")));
    }
    let mut proof = Vec::new();
    let (mut start, mut end) = (0, new);
    // Whether the old tree ends exactly where the subtree in hand does, from its beginning.
    let mut whole = true;
    while old != end {
        let split = start + (end - start).next_power_of_two() / 2;
        if old <= split {
            proof.push(range(nodes, split, end)?);
            end = split;
        } else {
            proof.push(range(nodes, start, split)?);
            start = split;
            whole = false;
        }
    }
    if !whole {
        proof.push(range(nodes, start, end)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Checks a consistency proof (RFC 9162, 2.1.4.2).
pub fn verify_consistency(
    (old, old_root): (u64, &Hash),
    (new, new_root): (u64, &Hash),
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old == 0 || old > new {
        return Err(ProofError::Range(format!("from {old} to {new} leaves")));
    }
    if old == new {
        let same = old_root == new_root;
        return if !proof.is_empty() {
            Err(ProofError::Length)
        } else if same {
            Ok(())
        } else {
            Err(ProofError::Root)
        };
    }
    let (mut place, mut last) = (old - 1, new - 1);
    while place & 1 == 1 {
        place >>= 1;
        last >>= 1;
    }
    // A complete old tree is its own first hash.
    let (first, rest) = if old.is_power_of_two() {
        (*old_root, proof)
    } else {
        let (first, rest) = proof.split_first().ok_or(ProofError::Length)?;
        (*first, rest)
    };
    let (mut from, mut to) = (first, first);
    for sibling in rest {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if place & 1 == 1 || place == last {
            from = hash_children(sibling, &from);
            to = hash_children(sibling, &to);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            to = hash_children(&to, sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    match (last, from == *old_root && to == *new_root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Length),
    }
}
