//! Drives Yubico's PKCS#11 driver by what standard input says: one command a line, one JSON line as its answer.
//!
//! It is a process of its own because the driver can block without limit, and lock itself for good.

use std::error::Error;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Drives Yubico's PKCS#11 driver: commands on standard input, one JSON line each as the answer")]
#[command(after_help = "\
Commands:
  info                      library, slots, tokens and the vendor's mechanism
  login PIN                 opens a session and logs in
  sessions COUNT            opens so many more sessions
  generate LABEL ID         makes an AES-256-CCM wrap key; ID is 2 bytes in hex
  find LABEL                selects the key of this label
  seal HEX | open HEX       CKM_YUBICO_AES_CCM_WRAP with the selected key
  destroy                   destroys the selected key
  others                    random bytes, AES-CBC and HMAC, with keys of their own
  reload                    C_Finalize, then C_Initialize

Exit codes: 0 all commands did their work, 1 one did not (its line says why), 2 bad usage.")]
struct Arguments {
    /// The driver, yubihsm_pkcs11.so. It finds its configuration by YUBIHSM_PKCS11_CONF.
    #[arg(long)]
    module: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut good = true;
    let answer = |step: &str, result: Result<Value, Box<dyn Error>>, start: Instant| {
        let ok = result.is_ok();
        let mut line = result.unwrap_or_else(|error| json!({"error": name(&*error)}));
        line["step"] = step.into();
        line["ok"] = ok.into();
        line["ms"] = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).into();
        println!("{line}");
        ok
    };
    let start = Instant::now();
    let mut driver = match Driver::load(&arguments) {
        Ok(driver) => driver,
        Err(error) => {
            answer("load", Err(error), start);
            return ExitCode::FAILURE;
        }
    };
    answer("load", Ok(json!({})), start);
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let start = Instant::now();
        good &= answer(words[0], driver.run(&words), start);
    }
    let start = Instant::now();
    good &= answer("result", driver.finalize().map(|()| json!({})), start);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The return code and its function, not the standard's paragraph about it.
fn name(error: &(dyn Error + 'static)) -> Value {
    match error.downcast_ref() {
        Some(cryptoki::error::Error::Pkcs11(code, function)) => json!(format!("{code:?} from {function:?}")),
        Some(other) => json!(format!("{other:?}")),
        None => json!(error.to_string()),
    }
}

type Answer = Result<Value, Box<dyn Error>>;

struct Driver {
    module: PathBuf,
    // Dropped in this order: sessions before the library.
    key: Option<ObjectHandle>,
    sessions: Vec<Session>,
    library: Pkcs11,
}

/// CKM_YUBICO_AES_CCM_WRAP and CKK_YUBICO_AES256_CCM_WRAP, of Yubico's pkcs11y.h.
const CCM_WRAP: u64 = 0xd955_4204;
const AES256_CCM_WRAP: u64 = 0xd955_422a;

impl Driver {
    fn load(arguments: &Arguments) -> Result<Self, Box<dyn Error>> {
        let library = load(&arguments.module)?;
        Ok(Self { module: arguments.module.clone(), key: None, sessions: Vec::new(), library })
    }

    fn run(&mut self, words: &[&str]) -> Answer {
        match *words {
            ["info"] => self.info(),
            ["login", pin] => self.login(pin),
            ["sessions", count] => self.open_sessions(count.parse()?),
            ["generate", label, id] => self.generate(label, &hex(id)?),
            ["find", label] => self.find(label),
            ["seal", text] => Ok(json!({"value": HEXLOWER.encode(&self.seal(&hex(text)?)?)})),
            ["open", sealed] => Ok(json!({"value": HEXLOWER.encode(&self.open(&hex(sealed)?)?)})),
            ["destroy"] => Ok(self.session()?.destroy_object(self.key()?).map(|()| json!({}))?),
            ["others"] => self.others(),
            ["reload"] => self.reload(),
            _ => Err(format!("no such command: {}", words.join(" ")).into()),
        }
    }

    fn info(&self) -> Answer {
        let info = self.library.get_library_info()?;
        let mut slots = Vec::new();
        for slot in self.library.get_slots_with_token()? {
            let (token, ccm) =
                (self.library.get_token_info(slot)?, self.library.get_mechanism_info(slot, ccm_type()?)?);
            slots.push(json!({
                "slot": slot.id(),
                "label": token.label(),
                "manufacturer": token.manufacturer_id(),
                "model": token.model(),
                "serial": token.serial_number(),
                "firmware": token.firmware_version().to_string(),
                "pin_length": [token.min_pin_length(), token.max_pin_length()],
                "ccm_wrap": {"encrypt": ccm.encrypt(), "decrypt": ccm.decrypt(), "key_size": [ccm.min_key_size(), ccm.max_key_size()]},
            }));
        }
        Ok(json!({
            "cryptoki": info.cryptoki_version().to_string(),
            "manufacturer": info.manufacturer_id(),
            "description": info.library_description(),
            "library": info.library_version().to_string(),
            "slots": slots,
        }))
    }

    fn login(&mut self, pin: &str) -> Answer {
        let session = self.library.open_rw_session(self.slot()?)?;
        session.login(UserType::User, Some(&AuthPin::new(pin.into())))?;
        self.sessions.push(session);
        Ok(json!({}))
    }

    fn open_sessions(&mut self, count: usize) -> Answer {
        for _ in 0..count {
            self.sessions.push(self.library.open_rw_session(self.slot()?)?);
        }
        Ok(json!({"open": self.sessions.len()}))
    }

    fn generate(&mut self, label: &str, id: &[u8]) -> Answer {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::new_vendor_defined(AES256_CCM_WRAP)?),
            Attribute::ValueLen(32.into()),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
            Attribute::Id(id.to_vec()),
            Attribute::Label(label.into()),
        ];
        self.key = Some(self.session()?.generate_key(&Mechanism::GenericSecretKeyGen, &template)?);
        Ok(json!({}))
    }

    fn find(&mut self, label: &str) -> Answer {
        let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.into())];
        let found = self.session()?.find_objects(&template)?;
        self.key = found.first().copied();
        Ok(json!({"found": found.len()}))
    }

    fn seal(&self, text: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
        Ok(self.session()?.encrypt(&ccm()?, self.key()?, text)?)
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
        Ok(self.session()?.decrypt(&ccm()?, self.key()?, sealed)?)
    }

    fn others(&self) -> Answer {
        let session = self.session()?;
        let [text, other, iv]: [[u8; 32]; 3] = [random(session)?, random(session)?, random(session)?];
        let aes = session.generate_key(
            &Mechanism::AesKeyGen,
            &[
                Attribute::Token(true),
                Attribute::ValueLen(32.into()),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
            ],
        )?;
        let iv = *iv.first_chunk().ok_or("no vector")?;
        let sealed = session.encrypt(&Mechanism::AesCbc(iv), aes, &text)?;
        let opened = session.decrypt(&Mechanism::AesCbc(iv), aes, &sealed)?;
        session.destroy_object(aes)?;

        let mac_key = session.generate_key(
            &Mechanism::GenericSecretKeyGen,
            &[
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::SHA256_HMAC),
                Attribute::Token(true),
                Attribute::Sign(true),
                Attribute::Verify(true),
            ],
        )?;
        let mac = session.sign(&Mechanism::Sha256Hmac, mac_key, &text)?;
        let right = session.verify(&Mechanism::Sha256Hmac, mac_key, &text, &mac);
        let wrong = session.verify(&Mechanism::Sha256Hmac, mac_key, &other, &mac);
        session.destroy_object(mac_key)?;
        Ok(json!({
            "random": text != other,
            "cbc": opened == text && sealed != text,
            "mac": right.is_ok() && mac.len() == 32,
            "wrong_mac": wrong.is_err(),
        }))
    }

    fn reload(&mut self) -> Answer {
        self.close();
        // The library's own handle is needed until a new one is there: the last one unloads it.
        let library = std::mem::replace(&mut self.library, Pkcs11::new(&self.module)?);
        library.finalize()?;
        initialize(&self.library)?;
        Ok(json!({"slots": self.library.get_slots_with_token()?.len()}))
    }

    fn finalize(mut self) -> Result<(), Box<dyn Error>> {
        self.close();
        Ok(self.library.finalize()?)
    }

    fn close(&mut self) {
        self.key = None;
        self.sessions.clear();
    }

    fn slot(&self) -> Result<Slot, Box<dyn Error>> {
        Ok(*self.library.get_slots_with_token()?.first().ok_or("no slot has a token")?)
    }

    fn session(&self) -> Result<&Session, Box<dyn Error>> {
        Ok(self.sessions.first().ok_or("not logged in")?)
    }

    fn key(&self) -> Result<ObjectHandle, Box<dyn Error>> {
        Ok(self.key.ok_or("no key is selected")?)
    }
}

fn load(module: &PathBuf) -> Result<Pkcs11, Box<dyn Error>> {
    let library = Pkcs11::new(module)?;
    initialize(&library)?;
    Ok(library)
}

fn initialize(library: &Pkcs11) -> Result<(), Box<dyn Error>> {
    Ok(library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?)
}

fn ccm_type() -> Result<MechanismType, Box<dyn Error>> {
    Ok(MechanismType::new_vendor_defined(CCM_WRAP)?)
}

fn ccm() -> Result<Mechanism<'static>, Box<dyn Error>> {
    Ok(Mechanism::VendorDefined(VendorDefinedMechanism::new::<u8>(ccm_type()?, None)))
}

fn random(session: &Session) -> Result<[u8; 32], Box<dyn Error>> {
    let mut bytes = [0; 32];
    session.generate_random_slice(&mut bytes)?;
    Ok(bytes)
}

fn hex(text: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    Ok(HEXLOWER.decode(text.as_bytes())?)
}
