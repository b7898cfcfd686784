//! Tests of items: the vectors of BEP 44 and 46, sizes, signatures in batches, records.

use super::*;
use proptest::prelude::*;

const KEY: &str = "77ff84905a91936367c01360803104f92432fcd904a43511876df5cdf3e7e548";
const PLAIN: &str = "305ac8aeb6c9c151fa120f120ea2cfb923564e11552d06a5d856091e5e853cff\
                     1260d3f39e4999684aa92eb73ffd136e6f4f3ecbfda0ce53a1608ecd7ae21f01";
const SALTED: &str = "6834284b6b24c3204eb2fea824d82f88883a3d95e8b4a21b8c0ded553d17d17d\
                      df9a8a7104b1258f30bed3787e6cb896fca78c58f8e03b5f18f14951a87d9a08";
const VALUE: &[u8] = b"12:Hello World!";

fn hex<const N: usize>(text: &str) -> [u8; N] {
    let byte = |index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap();
    assert_eq!(text.len(), 2 * N);
    std::array::from_fn(byte)
}

#[test]
fn vectors_of_bep_44_hold() {
    let key = hex::<32>(KEY);
    for (salt, signature, target) in [
        (&b""[..], PLAIN, "4a533d47ec9c7d95b1ad75f576cffc641853b750"),
        (b"foobar", SALTED, "411eba73b6f087ca51a3795d9c8c938d365e32c1"),
    ] {
        let signature = hex::<64>(signature);
        let item = MutableItem { key: &key, salt, seq: 1, signature: &signature, value: VALUE };
        assert_eq!(Item::Mutable(item).target().to_string(), target);
        assert!(Signed::of(&item).is_valid());
        assert!(!Signed::of(&MutableItem { seq: 2, ..item }).is_valid());
        assert!(!Signed::of(&MutableItem { salt: b"foobaz", ..item }).is_valid());
        assert!(!Signed::of(&MutableItem { value: b"12:Hello world!", ..item }).is_valid());
    }
    let target = Item::Immutable(VALUE).target();
    assert_eq!(target.to_string(), "e5f96f6f38320f0f33959cb4d3d656452117aadb");
}

/// BEP 46, "Test vectors": the targets of a key without salt and with the salt "n".
#[test]
fn vectors_of_bep_46_hold() {
    let key = hex("8543d3e6115f0f98c944077a4493dcd543e49c739fd998550a1f614ab36ed63e");
    for (salt, target) in [
        (&b""[..], "cc3f9d90b572172053626f9980ce261a850d050b"),
        (b"n", "59ee7c2cb9b4f7eb1986ee2d18fd2fdb8a56554f"),
    ] {
        assert_eq!(mutable_target(&key, salt).to_string(), target);
    }
}

#[test]
fn what_is_signed_is_a_dictionary_without_its_ends() {
    let mut signed = Vec::new();
    write_signed(b"foobar", 1, VALUE, &mut signed);
    assert_eq!(signed, b"4:salt6:foobar3:seqi1e1:v12:Hello World!");
    signed.clear();
    write_signed(b"", 4, VALUE, &mut signed);
    assert_eq!(signed, b"3:seqi4e1:v12:Hello World!");
}

#[test]
fn sizes_and_spelling_are_checked() {
    let string = |len: usize| [format!("{len}:").into_bytes(), vec![b'x'; len]].concat();
    assert_eq!(check_value(&string(996)), Ok(()), "1,000 bytes with its length");
    assert_eq!(check_value(&string(997)), Err(Reject::ValueTooLong));
    for (value, expected) in [
        (&b"i-5e"[..], Ok(())),
        (b"d1:ai1e1:bl0:ee", Ok(())),
        (b"d1:bi1e1:ai2ee", Err(Reject::NotCanonical)),
        (b"i05e", Err(Reject::NotCanonical)),
        (b"", Err(Reject::Invalid("v"))),
        (b"5:abc", Err(Reject::Invalid("v"))),
        (b"0:0:", Err(Reject::Invalid("v"))),
    ] {
        assert_eq!(check_value(value), expected, "{}", value.escape_ascii());
    }
    let (key, signature) = ([1; 32], [2; 64]);
    let item = |salt, seq| {
        Item::Mutable(MutableItem { key: &key, salt, seq, signature: &signature, value: VALUE })
    };
    assert_eq!(item(&[b's'; 64], i64::MAX).check(), Ok(()));
    assert_eq!(item(&[b's'; 65], 0).check(), Err(Reject::SaltTooLong));
    assert_eq!(item(b"", -1).check(), Err(Reject::NegativeSeq));
}

/// Any pattern of right and wrong signatures is told apart as one by one, for batches of all sizes.
#[test]
fn batches_tell_what_single_checks_tell() {
    let mut rng = fastrand::Rng::with_seed(5);
    let signed = |rng: &mut fastrand::Rng, good: bool| {
        let signer = SigningKey::from_seed(&std::array::from_fn(|_| rng.u8(..)));
        let (key, mut signature) = (signer.public(), signer.sign(b"s", 7, VALUE));
        if !good {
            signature[rng.usize(..64)] ^= 1 << rng.u8(..8);
        }
        Signed::of(&MutableItem {
            key: &key,
            salt: b"s",
            seq: 7,
            signature: &signature,
            value: VALUE,
        })
    };
    for len in [0, 1, 3, 4, 5, BATCH_MAX, BATCH_MAX + 1, 2 * BATCH_MAX + 3] {
        for bad_of in [0, 1, 20] {
            let good: Vec<bool> =
                (0..len).map(|_| bad_of == 0 || rng.usize(..20) >= bad_of).collect();
            let all: Vec<Signed> = good.iter().map(|good| signed(&mut rng, *good)).collect();
            assert_eq!(verify_all(&all), good, "{len} signatures, {bad_of} in 20 bad");
        }
    }
}

#[test]
fn key_that_is_no_point_verifies_nothing() {
    let item = MutableItem { key: &[2; 32], salt: b"", seq: 1, signature: &[0; 64], value: VALUE };
    assert!(!Signed::of(&item).is_valid());
    assert_eq!(verify_all(&vec![Signed::of(&item); 9]), [false; 9]);
}

#[test]
fn records_are_laid_out_as_drawn() {
    let record = Record { put_ms: 0x0102, item: Item::Immutable(b"i1e") };
    assert_eq!(record.encode(), b"\x01\x00\x02\x01\x00\x00\x00\x00\x00\x00i1e");
    let (key, signature) = ([0xAA; 32], [0xBB; 64]);
    let item = MutableItem { key: &key, salt: b"no", seq: 3, signature: &signature, value: b"0:" };
    let bytes = Record { put_ms: 0, item: Item::Mutable(item) }.encode();
    assert_eq!(bytes[..18], *b"\x01\x01\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
    assert_eq!((&bytes[18..50], &bytes[50..114]), (&key[..], &signature[..]));
    assert_eq!(bytes[114..], *b"\x02no0:");
}

#[test]
fn bad_records_are_refused() {
    let good = Record { put_ms: 1, item: Item::Immutable(b"i1e") }.encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(Record::decode(&with(0, 9)), Err(RecordError::Version { found: 9 }));
    assert_eq!(Record::decode(&with(1, 9)), Err(RecordError::Field { field: "kind" }));
    assert_eq!(Record::decode(&with(10, b'x')), Err(RecordError::Field { field: "value" }));
    assert_eq!(Record::decode(&good[..9]), Err(RecordError::Truncated));
    assert_eq!(Record::decode(b""), Err(RecordError::Truncated));
}

proptest! {
    #[test]
    fn records_come_back(
        put_ms: u64, seq in 0..i64::MAX, key: [u8; 32], half: [u8; 32],
        salt in prop::collection::vec(any::<u8>(), 0..=SALT_LEN_MAX),
        text in prop::collection::vec(any::<u8>(), 0..=996), mutable: bool
    ) {
        let signature: [u8; 64] = [half, half].concat().try_into().unwrap();
        let value = [format!("{}:", text.len()).into_bytes(), text].concat();
        let (key, salt, signature, value) = (&key, &salt, &signature, &value);
        let item = MutableItem { key, salt, seq, signature, value };
        let item = if mutable { Item::Mutable(item) } else { Item::Immutable(value) };
        let record = Record { put_ms, item };
        let bytes = record.encode();
        prop_assert_eq!(Record::decode(&bytes), Ok(record));
    }
}
