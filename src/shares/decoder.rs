//! A second reader of shares, for the tests: bech32m and Lagrange's formula as the document has them, with none of the libraries.

/// What the document says of a share: set, threshold, number, value.
pub(super) struct Decoded {
    pub(super) set: [u8; 4],
    pub(super) threshold: u8,
    pub(super) number: u8,
    pub(super) value: Vec<u8>,
}

pub(super) fn decode(text: &str) -> Decoded {
    let plain: String = text.chars().filter(|character| *character != ' ').collect();
    let data: Vec<u8> = plain[4..].chars().map(|one| ALPHABET.find(one).unwrap().try_into().unwrap()).collect();
    assert_eq!(&plain[..4], "hks1");
    let expanded = b"hks".iter().map(|byte| byte >> 5).chain([0]).chain(b"hks".iter().map(|byte| byte & 31));
    assert_eq!(polymod(expanded.chain(data.iter().copied())), 0x2bc8_30a3);

    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for five in &data[..data.len() - 6] {
        (bits, count) = (bits << 5 | u32::from(*five), count + 5);
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count).unwrap());
            bits &= (1 << count) - 1;
        }
    }
    assert_eq!((bytes[0], bits), (1, 0));
    Decoded { set: bytes[1..5].try_into().unwrap(), threshold: bytes[5], number: bytes[6], value: bytes[7..].to_vec() }
}

/// f(0) of the polynomial through these points, for each byte.
pub(super) fn secret(shares: &[Decoded]) -> Vec<u8> {
    (0..shares[0].value.len())
        .map(|byte| {
            shares.iter().fold(0, |sum, share| {
                let others = shares.iter().filter(|other| other.number != share.number);
                let weight = others
                    .fold(1, |product, other| multiply(product, divide(other.number, other.number ^ share.number)));
                sum ^ multiply(share.value[byte], weight)
            })
        })
        .collect()
}

const ALPHABET: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";

fn polymod(values: impl Iterator<Item = u8>) -> u32 {
    values.fold(1, |sum, value| {
        let top = sum >> 25;
        let generators = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
        let next = (sum & 0x1ff_ffff) << 5 ^ u32::from(value);
        generators.iter().enumerate().fold(next, |sum, (bit, generator)| sum ^ (generator * (top >> bit & 1)))
    })
}

fn multiply(a: u8, b: u8) -> u8 {
    let product = (0..8_u8).filter(|bit| b >> bit & 1 == 1).fold(0, |sum, bit| sum ^ u16::from(a) << bit);
    let reduce = |rest: u16, bit: u8| if rest >> bit & 1 == 1 { rest ^ (0x11b_u16 << (bit - 8)) } else { rest };
    u8::try_from((8..16_u8).rev().fold(product, reduce)).unwrap()
}

fn divide(a: u8, b: u8) -> u8 {
    let inverse = (1..=255).find(|other| multiply(b, *other) == 1).unwrap();
    multiply(a, inverse)
}
