//! The bytes on the kernel boundary: sizes and offsets that cannot change without a new `ABI_VERSION`.
use core::mem::{offset_of, size_of};
use writ_abi::*;

#[test]
fn events_have_no_hidden_bytes_and_keep_their_layout() {
    assert_eq!(ABI_VERSION, 6);
    assert_eq!(size_of::<DecisionEvent>(), 208);
    assert_eq!(offset_of!(DecisionEvent, address), 64);
    assert_eq!(offset_of!(DecisionEvent, cpu), 96);
    assert_eq!(offset_of!(DecisionEvent, account), 160);
    assert_eq!(offset_of!(DecisionEvent, comm), 192);
    assert_eq!(offset_of!(DecisionEvent, issued), 184);
    assert_eq!(size_of::<ProcessEvent>(), 336);
    assert_eq!(size_of::<Budget>(), 64);
    assert_eq!(size_of::<TaskOffsets>(), 112);
    assert_eq!(size_of::<Session>(), 136);
    assert_eq!(offset_of!(Session, epochs), 80);
    assert_eq!(offset_of!(Session, port), 120);
    assert_eq!(size_of::<SocketOffsets>(), 48);
    assert_eq!(size_of::<KernelConfig>(), 32 + 112 + 48 + 96);
}

#[test]
fn shares_of_all_accounts_fit_the_half_of_the_ring_that_is_kept_for_them() {
    let entry = size_of::<DecisionEvent>() as u64;
    for (ring, accounts, cpus) in [(64 << 10, 1, 2), (64 << 10, 3, 8), (16 << 20, 1001, 64), (16 << 20, 4097, 256)] {
        let share = Budget::share(ring, entry, accounts, cpus);
        assert!(share >= 1);
        assert!((share * accounts + cpus) * (entry + 8) <= ring / 2, "{ring} {accounts} {cpus}: {share}");
    }
    assert_eq!(Budget::share(4096, entry, 4097, 256), 1, "never none");
    assert_eq!((Budget::row(0), Budget::row(4095), Budget::row(4096), Budget::row(u16::MAX)), (0, 4095, 4096, 4096));
    assert!(!Budget::exceeded(5, 5) && Budget::exceeded(6, 5) && Budget::exceeded(1, 0));
    assert!(!Budget::exceeded(u64::MAX, 5), "a number taken may be ahead of those issued");
}

#[test]
fn table_words_survive_a_round_trip() {
    let stance = Stance {
        valid_until: 1,
        observe_until: 2,
        learning_until: 3,
        fallback: 4,
        cells: 5,
        families: 6,
        executable_base: 7,
        address_base: 8,
        port_base: 9,
        addresses: 10,
        ports: 11,
    };
    assert_eq!(Stance::from_words(stance.to_words()), Some(stance));
    assert_eq!(Stance::from_words([0; STANCE_WORDS as usize]), None);
    let cell = Cell::new(Verdict::Escalate, Verdict::Deny, Reason::Policy, 77);
    assert_eq!(
        (cell.verdict(), cell.would(), cell.reason(), cell.explanation()),
        (Verdict::Escalate, Verdict::Deny, 1, 77)
    );
    let slot = Slot::new(3, 9);
    assert_eq!((slot.stance(), slot.epoch()), (3, 9));
    let clause = Clause::new(12, 0xff_ffff, 34);
    assert_eq!((clause.account(), clause.user(), clause.executable()), (12, 0xff_ffff, 34));
    assert_eq!(ClauseList::direct(7).account(), Some(7));
    assert_eq!(ClauseList::NONE.account(), None);
    assert_eq!(AccountFlags(1).with_errno(13).errno(), 13);
}

#[test]
fn an_unspecified_or_nat64_address_is_judged_as_the_one_the_kernel_reaches() {
    let mut nat64 = [Nat64Prefix::default(); NAT64_PREFIXES];
    assert_eq!(Address::NONE.canonical(&nat64).octets()[15], 1);
    assert_eq!(Address::from_v4([0, 0, 0, 0]).canonical(&nat64), Address::from_v4([127, 0, 0, 1]));
    let well_known = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    let below = |v4: [u8; 4]| Address::from_octets([&well_known[..], &v4[..]].concat().try_into().unwrap());
    assert_eq!(below([10, 1, 2, 3]).canonical(&nat64), below([10, 1, 2, 3]));
    nat64[1] = Nat64Prefix { prefix: below([0, 0, 0, 0]), used: 1 };
    assert_eq!(below([10, 1, 2, 3]).canonical(&nat64), Address::from_v4([10, 1, 2, 3]));
    assert_eq!(below([0, 0, 0, 0]).canonical(&nat64), Address::from_v4([127, 0, 0, 1]));
    assert_eq!(Address::from_v4([10, 1, 2, 3]).v4(), Some([10, 1, 2, 3]));
    assert_eq!(below([10, 1, 2, 3]).v4(), None);
}

#[test]
fn a_unit_counts_only_below_slices() {
    let unit = PathHash::of(b"billing.service");
    let at = |path: &str| {
        let walk = PathWalk::over(path.as_bytes());
        walk.below_slices == 1 && walk.unit == unit
    };
    assert!(at("/system.slice/billing.service"));
    assert!(at("/a.slice/a-b.slice/billing.service"));
    assert!(at("/billing.service"));
    assert!(!at("/user.slice/user-1000.slice/user@1000.service/app.slice/billing.service"));
    assert!(!at("/system.slice/other.service/billing.service"));
    assert!(!at("/system.slice/billing.service/child"));
    assert_eq!(PathWalk::over(b"/a/b").path, PathHash::of(b"/a/b"));
}

#[test]
fn a_sealed_judgement_ends_with_its_time_and_with_its_epochs() {
    const MILLISECOND: u64 = 1_000_000;
    let epochs = [7, 0, 0, 0];
    let sealed = seal(5 * MILLISECOND, &epochs);
    assert!(holds(sealed, &epochs, 4 * MILLISECOND));
    assert!(!holds(sealed, &epochs, 5 * MILLISECOND));
    assert!(!holds(sealed, &[8, 0, 0, 0], 4 * MILLISECOND));
    assert!(holds(seal(NEVER, &epochs), &epochs, u64::from(u32::MAX) * MILLISECOND));
    assert!(!holds(0, &[0; SESSION_ACCOUNTS], 0));
    assert!(ends_by_time(sealed) && !ends_by_time(seal(NEVER, &epochs)));
    // Never late: a deadline within a millisecond is rounded down.
    assert!(!holds(seal(5 * MILLISECOND + 999_999, &epochs), &epochs, 5 * MILLISECOND));
}
