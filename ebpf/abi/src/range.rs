//! Which class an address has: a search tree over ranges, as wide as a few cache lines and as deep as four or five nodes,
//! so that ten thousand prefixes cost a connect little more than ten do.
//!
//! Prefixes nest; ranges do not. A generation's prefixes are cut into the ranges between their ends, and each range is named
//! by its first address. A node holds such addresses in ascending order and, for each, where what begins there is told:
//! another node, or a class. It is searched without a branch, by counting: a program's verifier then follows one way only.

use core::hint::black_box;

/// How many ranges a node of IPv4 addresses tells apart.
pub const FAN_V4: usize = 16;
/// How many ranges a node of IPv6 addresses tells apart.
pub const FAN_V6: usize = 8;
/// How deep a tree can be: room for 16 million ranges of either kind.
pub const RANGE_DEPTH: u32 = 8;
/// Set in a link to a class; the other bits are its number. Otherwise a link is the index of a node.
pub const LINK_CLASS: u32 = 1 << 31;

/// Sixteen first addresses in host byte order, ascending, the first of a tree's leftmost nodes 0; then sixteen links. Where
/// there are fewer, the rest are `u32::MAX` with the link of the last.
pub type NodeV4 = [u32; 2 * FAN_V4];
/// Eight first addresses, each as its high and its low half; then eight links, two to a word, low half first. Where there
/// are fewer, the rest are all ones with the link of the last.
pub type NodeV6 = [u64; 2 * FAN_V6 + FAN_V6 / 2];

/// The class of an address (in host byte order). `node` finds a node by its index; the root has index 0. `None` if a node is
/// missing: such an address has no class, and is refused.
#[inline(always)]
pub fn class_v4<'a>(node: impl Fn(u32) -> Option<&'a NodeV4>, address: u32) -> Option<u32> {
    follow(|at| Some(link_v4(node(at)?, address)))
}

/// As [`class_v4`]; the address is given as its high and its low half.
#[inline(always)]
pub fn class_v6<'a>(node: impl Fn(u32) -> Option<&'a NodeV6>, address: [u64; 2]) -> Option<u32> {
    follow(|at| Some(link_v6(node(at)?, address)))
}

#[inline(always)]
fn follow(link: impl Fn(u32) -> Option<u32>) -> Option<u32> {
    let mut at = 0;
    let mut depth = 0;
    while depth < RANGE_DEPTH {
        let next = link(at)?;
        if next & LINK_CLASS != 0 {
            return Some(next & !LINK_CLASS);
        }
        at = next;
        depth += 1;
    }
    None
}

/// How many of the first addresses lie above this one decides the link; never all do, because the leftmost is 0.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "both indices are below the array's constant length")]
fn link_v4(node: &NodeV4, address: u32) -> u32 {
    // The compiler must not see that this is a comparison: it would make branches of it.
    let address = black_box(u64::from(address));
    let mut above = 0;
    let mut key = 0;
    while key < FAN_V4 {
        above += address.wrapping_sub(u64::from(node[key])) >> 63;
        key += 1;
    }
    node[FAN_V4 + ((FAN_V4 as u64 - 1 - above) as usize & (FAN_V4 - 1))]
}

#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "all indices are below the array's constant length")]
fn link_v6(node: &NodeV6, address: [u64; 2]) -> u32 {
    let [high, low] = address.map(black_box);
    let mut above = 0;
    let mut key = 0;
    while key < FAN_V6 {
        // The borrow of a subtraction of 128 bits.
        let borrow = borrows(low, node[2 * key + 1], low.wrapping_sub(node[2 * key + 1]));
        let first = node[2 * key];
        above += borrows(high, first, high.wrapping_sub(first).wrapping_sub(borrow));
        key += 1;
    }
    let place = (FAN_V6 as u64 - 1 - above) as usize & (FAN_V6 - 1);
    (node[2 * FAN_V6 + place / 2] >> (place % 2 * 32)) as u32
}

/// 1 if subtracting `b` from `a` borrowed, which left `difference`.
#[inline(always)]
const fn borrows(a: u64, b: u64, difference: u64) -> u64 {
    ((!a & b) | ((!a | b) & difference)) >> 63
}
