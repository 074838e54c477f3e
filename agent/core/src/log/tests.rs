//! Claims about the log's mathematics: the standard's own vectors, an independent implementation, and every small tree.

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use proptest::prelude::*;
use sha2::Sha256;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The eight leaves and nine heads that Certificate Transparency's implementations are tested with.
#[test]
fn tree_heads_are_those_of_rfc_6962() {
    let leaves =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"].map(hex);
    let heads = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut edge = Edge::default();
    for (size, head) in heads.into_iter().enumerate() {
        assert_eq!(edge.root().to_vec(), hex(head), "size {size}");
        if let Some(leaf) = leaves.get(size) {
            edge.push(hash_leaf(leaf), |_| {});
        }
    }
}

fn leaves(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(|number| number.to_string().into_bytes()).collect()
}

fn hashes(count: u64) -> Vec<Hash> {
    leaves(count).iter().map(|leaf| hash_leaf(leaf)).collect()
}

#[test]
fn proofs_of_every_small_tree_agree_with_ct_merkle() {
    for size in 1..=40u64 {
        let mut oracle = MemoryBackedTree::<Sha256, Vec<u8>>::new();
        leaves(size).into_iter().for_each(|leaf| oracle.push(leaf));
        let all = hashes(size);
        let root = root_of(&all);
        assert_eq!(oracle.root().as_bytes().as_slice(), root);
        let theirs = RootHash::<Sha256>::new(root.into(), size);
        for index in 0..size {
            let proof = inclusion_proof(index, size, &Leaves(&all)).unwrap();
            assert_eq!(proof.as_flattened(), oracle.prove_inclusion(index as usize).as_bytes());
            let encoded = InclusionProof::try_from_bytes(proof.as_flattened().to_vec()).unwrap();
            theirs.verify_inclusion(&leaves(size)[index as usize], index, &encoded).unwrap();
            assert_eq!(verify_inclusion(&all[index as usize], index, size, &proof, &root), Ok(()));
        }
        for old in 1..=size {
            let proof = consistency_proof(old, size, &Leaves(&all)).unwrap();
            let old_root = root_of(&all[..old as usize]);
            if old < size {
                assert_eq!(proof.as_flattened(), oracle.prove_consistency((size - old) as usize).as_bytes());
            }
            let encoded = ConsistencyProof::try_from_bytes(proof.as_flattened().to_vec()).unwrap();
            theirs.verify_consistency(&RootHash::new(old_root.into(), old), &encoded).unwrap();
            assert_eq!(verify_consistency((old, &old_root), (size, &root), &proof), Ok(()));
        }
    }
}

proptest! {
    #[test]
    fn a_proof_with_anything_changed_does_not_hold(size in 2u64..70, place in any::<u64>(), change in 0usize..6) {
        let all = hashes(size);
        let root = root_of(&all);
        let index = place % size;
        let mut proof = inclusion_proof(index, size, &Leaves(&all)).unwrap();
        let (mut leaf, mut index, mut size) = (all[index as usize], index, size);
        match change {
            0 => leaf[3] ^= 1,
            1 => { let which = (place % proof.len() as u64) as usize; proof[which][31] ^= 0x80; }
            2 => { proof.pop(); }
            3 => proof.push(root),
            4 => index = (index + 1) % size,
            _ => size *= 2,
        }
        prop_assert!(verify_inclusion(&leaf, index, size, &proof, &root).is_err());
    }

    #[test]
    fn a_tree_that_is_not_a_beginning_is_not_consistent(size in 2u64..70, place in any::<u64>(), flip in any::<u64>()) {
        let all = hashes(size);
        let old = place % (size - 1) + 1;
        let mut other = all[..old as usize].to_vec();
        other[(flip % old) as usize][0] ^= 1;
        let proof = consistency_proof(old, size, &Leaves(&all)).unwrap();
        let result = verify_consistency((old, &root_of(&other)), (size, &root_of(&all)), &proof);
        prop_assert!(result.is_err());
    }

    #[test]
    fn parsers_take_any_text_without_harm(text in "(?s).{0,300}") {
        let _ = (SignedNote::parse(&text), Checkpoint::parse_body(&text), TlogProof::parse(&text));
        let _ = (Vkey::parse(&text), NoteSigner::parse(&text), TilePath::parse(&text), decode_bundle(text.as_bytes()));
    }
}

#[test]
fn an_edge_grown_loaded_or_folded_has_the_same_root_and_tiles_answer_for_every_node() {
    let all = hashes(66_000);
    let mut tiles = std::collections::BTreeMap::new();
    let mut edge = Edge::default();
    for (number, leaf) in all.iter().enumerate() {
        edge.push(*leaf, |tile| {
            tiles.insert((tile.level, tile.index), tile.hashes);
        });
        let size = number + 1;
        if [1, 255, 256, 257, 65_535, 65_536, 65_537, 66_000].contains(&size) {
            assert_eq!(edge.root(), root_of(&all[..size]), "size {size}");
        }
    }
    for (tile, hashes) in edge.partial() {
        let TileKind::Hashes(level) = tile.kind else { panic!("{tile}") };
        tiles.insert((level, tile.index), hashes.to_vec());
    }
    let fetch = |tile: TilePath| {
        let TileKind::Hashes(level) = tile.kind else { panic!("{tile}") };
        let hashes = tiles.get(&(level, tile.index)).and_then(|hashes| hashes.get(..usize::from(tile.width)));
        hashes.map(<[Hash]>::to_vec).ok_or(ProofError::Tile { name: tile.to_string(), reason: "missing".to_owned() })
    };
    assert_eq!(Edge::load(66_000, fetch).unwrap(), edge);
    assert_eq!(Edge::load(65_536, fetch).unwrap().root(), root_of(&all[..65_536]));
    let nodes = TileNodes { size: 66_000, fetch };
    for index in [0, 1, 255, 256, 65_535, 65_536, 65_999] {
        assert_eq!(
            inclusion_proof(index, 66_000, &nodes),
            inclusion_proof(index, 66_000, &Leaves(&all)),
            "leaf {index}"
        );
    }
    for old in [1, 255, 256, 300, 65_536, 65_537] {
        assert_eq!(consistency_proof(old, 66_000, &nodes), consistency_proof(old, 66_000, &Leaves(&all)), "from {old}");
    }
}

/// The key and note of the reference implementation's documentation (golang.org/x/mod/sumdb/note).
#[test]
fn notes_and_keys_are_those_of_the_reference_implementation() {
    let vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    let private = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    let text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
    let note = format!(
        "{text}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    );
    let key = Vkey::parse(vkey).unwrap();
    let signer = NoteSigner::parse(private).unwrap();
    assert_eq!((key.to_string().as_str(), key.id()), (vkey, 0xc74f_20a3));
    assert_eq!(signer.vkey(), key);
    assert_eq!(signer.to_private_text().trim_end(), private);
    assert_eq!(signer.sign(text), note);
    assert_eq!(SignedNote::parse(&note).unwrap().verify(&key), Ok(text));
    for place in 0..vkey.len() {
        let mut bad = vkey.as_bytes().to_vec();
        bad[place] += 1;
        assert!(Vkey::parse(std::str::from_utf8(&bad).unwrap()).is_err(), "{place}");
    }
}

/// The example of c2sp.org/signed-note: an empty line within the text, and a signature by somebody else's key.
#[test]
fn the_text_of_a_note_ends_at_its_last_empty_line() {
    let note = "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n\n— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n";
    let note = SignedNote::parse(note).unwrap();
    assert!(note.unverified_text().ends_with(":\n\ned è subito sera.\n"));
    let stranger = NoteSigner::from_seed("quasimodo.example/salvatore", &[9; 32]).unwrap().vkey();
    assert!(matches!(note.verify(&stranger), Err(NoteError::Unsigned(_))));
}

#[test]
fn a_note_signed_by_another_key_of_the_same_name_or_changed_after_signing_is_refused() {
    let signer = NoteSigner::from_seed("writ.test/a", &[1; 32]).unwrap();
    let head = Checkpoint { origin: "writ.test/a".to_owned(), size: 7, root: [5; 32] };
    let note = head.sign(&signer);
    assert_eq!(Checkpoint::open(&note, &signer.vkey()), Ok(head));
    let other = NoteSigner::from_seed("writ.test/a", &[2; 32]).unwrap().vkey();
    assert!(Checkpoint::open(&note, &other).is_err());
    let changed = note.replacen("\n7\n", "\n8\n", 1);
    assert_eq!(Checkpoint::open(&changed, &signer.vkey()), Err(NoteError::Invalid("writ.test/a".to_owned()).into()));
    let elsewhere = Checkpoint { origin: "writ.test/b".to_owned(), size: 7, root: [5; 32] }.sign(&signer);
    assert!(matches!(Checkpoint::open(&elsewhere, &signer.vkey()), Err(CheckpointError::Origin { .. })));
}

#[test]
fn a_statement_of_pruning_needs_the_log_s_signature_and_name() {
    let signer = NoteSigner::from_seed("writ.test/a", &[1; 32]).unwrap();
    let pruned = Pruned { origin: "writ.test/a".to_owned(), first_index: 7 };
    assert_eq!(Pruned::open(&pruned.sign(&signer), &signer.vkey()), Ok(pruned.clone()));
    assert!(Pruned::open(&pruned.sign(&signer).replace("\n7\n", "\n9\n"), &signer.vkey()).is_err());
    let head = Checkpoint { origin: "writ.test/a".to_owned(), size: 7, root: [5; 32] };
    assert!(Pruned::open(&head.sign(&signer), &signer.vkey()).is_err());
}

#[test]
fn tile_names_are_those_of_the_specification() {
    let cases = [
        (TilePath::full(TileKind::Hashes(0), 0), "0/000"),
        (TilePath::full(TileKind::Hashes(0), 1_234_067), "0/x001/x234/067"),
        (TilePath { kind: TileKind::Entries, index: 273, width: 112 }, "entries/273.p/112"),
        (TilePath { kind: TileKind::Hashes(2), index: 1000, width: 1 }, "2/x001/000.p/1"),
    ];
    for (tile, name) in cases {
        assert_eq!(tile.to_string(), name);
        assert_eq!(TilePath::parse(name), Some(tile));
    }
    for bad in
        ["0/0", "0/x000/001", "0/000.p/256", "0/000.p/0", "0/000.p/01", "00/000", "64/000", "0/1000", "0/x1/000", "0/"]
    {
        assert_eq!(TilePath::parse(bad), None, "{bad}");
    }
    // The specification's example: a tree of 70,000.
    assert_eq!(widths(70_000).collect::<Vec<_>>(), [(0, 70_000), (1, 273), (2, 1)]);
}

#[test]
fn a_proof_of_one_record_is_one_text_that_checks_by_itself() {
    let signer = NoteSigner::from_seed("writ.test/a", &[1; 32]).unwrap();
    let all = hashes(11);
    let checkpoint = Checkpoint { origin: "writ.test/a".to_owned(), size: 11, root: root_of(&all) };
    let proof = TlogProof {
        extra: Some(b"4".to_vec()),
        index: 4,
        hashes: inclusion_proof(4, 11, &Leaves(&all)).unwrap(),
        checkpoint: checkpoint.sign(&signer),
    };
    let text = proof.to_string();
    assert!(text.starts_with("c2sp.org/tlog-proof@v1\nextra NA==\nindex 4\n"));
    let read = TlogProof::parse(&text).unwrap();
    assert_eq!(read, proof);
    assert_eq!(read.verify(b"4", &signer.vkey()), Ok(checkpoint));
    assert_eq!(read.verify(b"5", &signer.vkey()), Err(ProofError::Root.into()));
    let single = TlogProof { extra: None, index: 0, hashes: Vec::new(), ..proof };
    assert_eq!(TlogProof::parse(&single.to_string()), Ok(single));
}

#[test]
fn bundles_hold_entries_of_every_length_that_fits() {
    let entries = [Vec::new(), b"a".to_vec(), vec![b'x'; 65_535]];
    let mut bundle = Vec::new();
    assert!(entries.iter().all(|entry| encode_entry(&mut bundle, entry)));
    assert!(!encode_entry(&mut bundle, &[0; 65_536]));
    assert_eq!(decode_bundle(&bundle).unwrap(), entries);
    assert_eq!(decode_bundle(&bundle[..bundle.len() - 1]), None);
}
