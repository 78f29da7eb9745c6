//! Messages: command, length of the rest (2 bytes, big-endian), the rest.

/// Bytes of the largest message that the firmware takes, with its head.
pub const LARGEST_MESSAGE: usize = 3136 + HEAD;
const HEAD: usize = 3;

/// Commands and, with [`ANSWER`] added, their answers.
pub mod command {
    pub const ECHO: u8 = 0x01;
    pub const CREATE_SESSION: u8 = 0x03;
    pub const AUTHENTICATE_SESSION: u8 = 0x04;
    pub const SESSION_MESSAGE: u8 = 0x05;
    pub const GET_DEVICE_INFO: u8 = 0x06;
    pub const CLOSE_SESSION: u8 = 0x40;
    pub const GET_STORAGE_INFO: u8 = 0x41;
    pub const PUT_OPAQUE: u8 = 0x42;
    pub const GET_OPAQUE: u8 = 0x43;
    pub const LIST_OBJECTS: u8 = 0x48;
    pub const PUT_WRAP_KEY: u8 = 0x4c;
    pub const GET_OBJECT_INFO: u8 = 0x4e;
    pub const GET_PSEUDO_RANDOM: u8 = 0x51;
    pub const PUT_HMAC_KEY: u8 = 0x52;
    pub const SIGN_HMAC: u8 = 0x53;
    pub const DELETE_OBJECT: u8 = 0x58;
    pub const GENERATE_HMAC_KEY: u8 = 0x5a;
    pub const GENERATE_WRAP_KEY: u8 = 0x5b;
    pub const VERIFY_HMAC: u8 = 0x5c;
    pub const WRAP_DATA: u8 = 0x68;
    pub const UNWRAP_DATA: u8 = 0x69;
    pub const PUT_SYMMETRIC_KEY: u8 = 0x6d;
    pub const GENERATE_SYMMETRIC_KEY: u8 = 0x6e;
    pub const DECRYPT_ECB: u8 = 0x6f;
    pub const ENCRYPT_ECB: u8 = 0x70;
    pub const DECRYPT_CBC: u8 = 0x71;
    pub const ENCRYPT_CBC: u8 = 0x72;
    pub const ANSWER: u8 = 0x80;
    pub const ERROR: u8 = 0x7f;
}

/// An error code of the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refusal(pub u8);

impl Refusal {
    pub const INVALID_COMMAND: Self = Self(0x01);
    pub const INVALID_DATA: Self = Self(0x02);
    pub const INVALID_SESSION: Self = Self(0x03);
    pub const AUTHENTICATION_FAILED: Self = Self(0x04);
    pub const SESSIONS_FULL: Self = Self(0x05);
    pub const STORAGE_FAILED: Self = Self(0x07);
    pub const WRONG_LENGTH: Self = Self(0x08);
    pub const INSUFFICIENT_PERMISSIONS: Self = Self(0x09);
    pub const OBJECT_NOT_FOUND: Self = Self(0x0b);
    pub const OBJECT_EXISTS: Self = Self(0x11);
}

/// A message of this command.
pub fn message(command: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("shorter than 64 KiB");
    [&[command][..], &length.to_be_bytes(), data].concat()
}

/// The answer to a command, good or bad.
pub fn answer(command: u8, result: Result<Vec<u8>, Refusal>) -> Vec<u8> {
    match result {
        Ok(data) => message(command | command::ANSWER, &data),
        Err(Refusal(code)) => message(command::ERROR, &[code]),
    }
}

/// Command and data of a message.
pub fn parse(message: &[u8]) -> Result<(u8, &[u8]), Refusal> {
    let mut fields = Fields(message);
    let (command, length) = (fields.u8()?, fields.u16()?);
    let data = fields.rest();
    if data.len() == usize::from(length) { Ok((command, data)) } else { Err(Refusal::WRONG_LENGTH) }
}

/// Takes a command's data apart from its front.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Refusal::WRONG_LENGTH)?;
        self.0 = rest;
        Ok(*first)
    }

    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (first, rest) = self.0.split_at_checked(length).ok_or(Refusal::WRONG_LENGTH)?;
        self.0 = rest;
        Ok(first)
    }

    pub fn u8(&mut self) -> Result<u8, Refusal> {
        self.array().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Result<u16, Refusal> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Refusal> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), Refusal> {
        if self.is_empty() { Ok(()) } else { Err(Refusal::WRONG_LENGTH) }
    }
}
