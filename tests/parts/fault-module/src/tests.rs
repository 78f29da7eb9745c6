//! The imitated vendors, each against what its documentation says, on SoftHSM2. One test: a process has one module.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, ptr};

use cryptoki_sys::*;

use crate::C_GetFunctionList;

const PLAINTEXT: &[u8] = b"a seed of 32 bytes, or 33 of them";
const AAD: &[u8] = b"what the seal is bound to";

/// Calls the function of the list; SAFETY: every pointer below leads to a live value of the right type and length.
macro_rules! call {
    ($module:expr, $name:ident($($argument:expr),*)) => {
        // SAFETY: see above.
        unsafe { $module.list.$name.unwrap()($($argument),*) }
    };
}

struct Module {
    list: CK_FUNCTION_LIST,
    slot: CK_SLOT_ID,
    session: CK_SESSION_HANDLE,
    key: CK_OBJECT_HANDLE,
    control: PathBuf,
}

#[test]
fn vendors_are_imitated() {
    let directory = env::temp_dir().join(format!("fault-module-{}", std::process::id()));
    let module = Module::new(&directory);
    module.sends("luna-fips", &[], |sealed, _| split_end(sealed, 16));
    module.sends("suffix", &[], |sealed, _| split_end(sealed, 12));
    module.sends("prefix", &[], |sealed, _| (sealed[..12].to_vec(), sealed[12..].to_vec()));
    module.sends("param", &[0; 12], |sealed, parameter| (parameter.to_vec(), sealed.to_vec()));
    module.sends("param", &[0; 16], |sealed, parameter| (parameter.to_vec(), sealed.to_vec()));
    module.sends("protectserver", &[0; 12], |sealed, parameter| (parameter.to_vec(), sealed.to_vec()));
    module.sends("protectserver-old", &[7; 12], |sealed, _| split_end(sealed, 12));
    for layout in ["luna-fips", "suffix", "prefix", "inside", "param", "protectserver"] {
        module.refuses(layout, &[7; 12]);
    }
    for layout in ["param", "protectserver", "protectserver-old"] {
        module.refuses(layout, &[]);
    }
    module.seals_inside();
    module.writes_the_parameter_when_the_vendor_does();
    module.asks_for_room();
    module.reports_a_bad_tag_in_its_own_way();
    module.has_a_number_of_its_own();
    module.limits_sessions();
    module.takes_the_callers_iv();
    module.limits_bytes();
    module.changes_the_mechanism_list();
    module.judges_templates();
    module.follows_the_rules();
    // Last: a logout takes the key's handle along.
    module.judges_logins(&directory);
    fs::remove_dir_all(directory).unwrap();
}

impl Module {
    fn new(directory: &Path) -> Self {
        let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../scripts/softhsm2-setup");
        assert!(Command::new(setup).arg("--dir").arg(directory).status().unwrap().success());
        let control = directory.join("control.json");
        // SAFETY: this is the only test, and nothing reads the environment yet.
        unsafe {
            env::set_var("SOFTHSM2_CONF", directory.join("softhsm2.conf"));
            env::set_var("HSM_KMS_FAULT_FORWARD", "/usr/lib/softhsm/libsofthsm2.so");
            env::set_var("HSM_KMS_FAULT_CONTROL", &control);
            env::set_var("HSM_KMS_FAULT_COUNTS", directory.join("calls"));
        }
        let mut list = ptr::null_mut();
        // SAFETY: a place for the list, which is read once it is there.
        let list = unsafe {
            assert_eq!(C_GetFunctionList(&raw mut list), CKR_OK);
            *list
        };
        let mut module = Self { list, slot: 0, session: 0, key: 0, control };
        assert_eq!(call!(module, C_Initialize(ptr::null_mut())), CKR_OK);
        let (mut slots, mut count) = ([0; 8], 8);
        assert_eq!(call!(module, C_GetSlotList(CK_TRUE, slots.as_mut_ptr(), &raw mut count)), CKR_OK);
        module.slot = slots[0];
        module.session = module.open_session().unwrap();
        let mut pin = fs::read(directory.join("pin")).unwrap();
        let login = call!(module, C_Login(module.session, CKU_USER, pin.as_mut_ptr(), pin.len() as CK_ULONG));
        assert_eq!(login, CKR_OK);
        let (mut length, mut yes): (CK_ULONG, CK_BBOOL) = (32, CK_TRUE);
        let flag = |type_, value: *mut CK_BBOOL| CK_ATTRIBUTE { type_, pValue: value.cast(), ulValueLen: 1 };
        let mut template = [
            CK_ATTRIBUTE { type_: CKA_VALUE_LEN, pValue: (&raw mut length).cast(), ulValueLen: 8 },
            flag(CKA_ENCRYPT, &raw mut yes),
            flag(CKA_DECRYPT, &raw mut yes),
        ];
        let mut mechanism = CK_MECHANISM { mechanism: CKM_AES_KEY_GEN, pParameter: ptr::null_mut(), ulParameterLen: 0 };
        let made = call!(
            module,
            C_GenerateKey(module.session, &raw mut mechanism, template.as_mut_ptr(), 3, &raw mut module.key)
        );
        assert_eq!(made, CKR_OK);
        module
    }

    /// Seals under the layout with this IV sent. `find` takes the IV from where the vendor puts it, and leaves the ciphertext,
    /// which must open both on the imitated module and on the real one.
    fn sends(&self, layout: &str, iv: &[u8], find: impl Fn(&[u8], &[u8]) -> (Vec<u8>, Vec<u8>)) {
        let mut ivs = Vec::new();
        for _ in 0..2 {
            self.imitate(&format!(r#""iv":"{layout}""#));
            let mut parameter = iv.to_vec();
            let sealed = self.seal(&mut parameter, 200).unwrap();
            let (iv, ciphertext) = find(&sealed, &parameter);
            assert_eq!(ciphertext.len(), PLAINTEXT.len() + 16, "{layout}");
            assert_eq!(self.open(&iv, &ciphertext).unwrap(), PLAINTEXT, "{layout}");
            self.set("{}");
            assert_eq!(self.open(&iv, &ciphertext).unwrap(), PLAINTEXT, "{layout}");
            ivs.push(iv);
        }
        assert_ne!(ivs[0], ivs[1], "{layout}");
    }

    fn refuses(&self, layout: &str, iv: &[u8]) {
        self.imitate(&format!(r#""iv":"{layout}""#));
        assert_eq!(self.seal(&mut iv.to_vec(), 200), Err(CKR_MECHANISM_PARAM_INVALID), "{layout}");
    }

    fn seals_inside(&self) {
        self.imitate(r#""iv":"inside""#);
        let sealed = self.seal(&mut [], 200).unwrap();
        assert_eq!(sealed.len(), 12 + PLAINTEXT.len() + 16);
        assert_eq!(self.open(&[], &sealed).unwrap(), PLAINTEXT);
        let mut altered = sealed.clone();
        altered[3] ^= 1;
        self.open(&[], &altered).unwrap_err();
        assert_eq!(self.open(&[], &sealed[..11]), Err(CKR_ENCRYPTED_DATA_LEN_RANGE));
        assert_eq!(self.open(&sealed[..12], &sealed[12..]), Err(CKR_MECHANISM_PARAM_INVALID));
        self.set("{}");
        assert_eq!(self.open(&sealed[..12], &sealed[12..]).unwrap(), PLAINTEXT);
    }

    fn writes_the_parameter_when_the_vendor_does(&self) {
        for (layout, at_init) in [("param", false), ("protectserver", true)] {
            self.imitate(&format!(r#""iv":"{layout}""#));
            let mut iv = [0; 12];
            assert_eq!(self.init(&mut iv, CKM_AES_GCM), CKR_OK);
            assert_eq!(iv != [0; 12], at_init, "{layout}");
            self.finish(200).unwrap();
            assert_ne!(iv, [0; 12], "{layout}");
        }
    }

    fn asks_for_room(&self) {
        for (layout, extra) in [("luna-fips", 16), ("prefix", 12)] {
            self.imitate(&format!(r#""iv":"{layout}""#));
            let needed = (PLAINTEXT.len() + 16 + extra) as CK_ULONG;
            assert_eq!(self.init(&mut [], CKM_AES_GCM), CKR_OK);
            let mut length = 0;
            let input = PLAINTEXT.as_ptr().cast_mut();
            let query = call!(
                self,
                C_Encrypt(self.session, input, PLAINTEXT.len() as CK_ULONG, ptr::null_mut(), &raw mut length)
            );
            assert_eq!((query, length), (CKR_OK, needed));
            assert_eq!(self.finish(needed as usize - 1), Err(CKR_BUFFER_TOO_SMALL));
            assert_eq!(self.finish(needed as usize).unwrap().len(), needed as usize);
        }
    }

    fn reports_a_bad_tag_in_its_own_way(&self) {
        self.imitate(r#""bad_tag":2147483939"#);
        let sealed = self.seal(&mut [7; 12], 200).unwrap();
        assert_eq!(self.open(&[7; 12], &sealed).unwrap(), PLAINTEXT);
        assert_eq!(self.open(&[8; 12], &sealed), Err(0x8000_0123));
    }

    fn has_a_number_of_its_own(&self) {
        const NUMBER: CK_MECHANISM_TYPE = 0x8001_E101;
        self.imitate(r#""iv":"param","mechanism":2147606785"#);
        assert_eq!(self.init(&mut [0; 12], CKM_AES_GCM), CKR_MECHANISM_INVALID);
        let mut iv = [0; 12];
        assert_eq!(self.init(&mut iv, NUMBER), CKR_OK);
        self.finish(200).unwrap();
        let (mut list, mut count) = ([0; 200], 200);
        assert_eq!(call!(self, C_GetMechanismList(self.slot, list.as_mut_ptr(), &raw mut count)), CKR_OK);
        let list = &list[..count as usize];
        assert!(list.contains(&NUMBER) && !list.contains(&CKM_AES_GCM));
        let mut info = CK_MECHANISM_INFO::default();
        assert_eq!(call!(self, C_GetMechanismInfo(self.slot, NUMBER, &raw mut info)), CKR_OK);
        assert_eq!(call!(self, C_GetMechanismInfo(self.slot, CKM_AES_GCM, &raw mut info)), CKR_MECHANISM_INVALID);
    }

    fn limits_sessions(&self) {
        self.imitate(r#""sessions":2"#);
        let second = self.open_session().unwrap();
        assert_eq!(self.open_session(), Err(CKR_SESSION_COUNT));
        assert_eq!(call!(self, C_CloseSession(second)), CKR_OK);
        let second = self.open_session().unwrap();
        assert_eq!(call!(self, C_CloseSession(second)), CKR_OK);
    }

    fn takes_the_callers_iv(&self) {
        self.imitate(r#""iv":"sent","wrong_iv":"CKR_ARGUMENTS_BAD""#);
        let sealed = self.seal(&mut [7; 12], 200).unwrap();
        assert_eq!(self.open(&[7; 12], &sealed).unwrap(), PLAINTEXT);
        assert_eq!(self.seal(&mut [], 200), Err(CKR_ARGUMENTS_BAD));
        let mut iv = [7; 12];
        let mut parameters = CK_GCM_PARAMS { ulIvBits: 0, ..parameters(&mut iv) };
        let mut mechanism = mechanism(&mut parameters, CKM_AES_GCM);
        let begun = call!(self, C_EncryptInit(self.session, &raw mut mechanism, self.key));
        assert_eq!(begun, CKR_ARGUMENTS_BAD);
    }

    fn limits_bytes(&self) {
        self.imitate(&format!(r#""max_bytes":{}"#, PLAINTEXT.len()));
        self.seal(&mut [7; 12], 200).unwrap();
        self.imitate(&format!(r#""max_bytes":{}"#, PLAINTEXT.len() - 1));
        for _ in 0..2 {
            assert_eq!(self.seal(&mut [7; 12], 200), Err(CKR_DATA_LEN_RANGE));
        }
    }

    fn changes_the_mechanism_list(&self) {
        let list = || {
            let mut count = 0;
            assert_eq!(call!(self, C_GetMechanismList(self.slot, ptr::null_mut(), &raw mut count)), CKR_OK);
            let (mut list, mut room) = (vec![0; count as usize], count - 1);
            let short = call!(self, C_GetMechanismList(self.slot, list.as_mut_ptr(), &raw mut room));
            assert_eq!((short, room), (CKR_BUFFER_TOO_SMALL, count));
            assert_eq!(call!(self, C_GetMechanismList(self.slot, list.as_mut_ptr(), &raw mut count)), CKR_OK);
            list
        };
        self.set("{}");
        let real = list();
        self.imitate(r#""hidden":[4231],"listed":[2147606785]"#);
        let changed = list();
        assert!(!changed.contains(&CKM_AES_GCM) && changed.contains(&0x8001_E101) && changed.len() == real.len());
        let mut info = CK_MECHANISM_INFO::default();
        assert_eq!(call!(self, C_GetMechanismInfo(self.slot, CKM_AES_GCM, &raw mut info)), CKR_MECHANISM_INVALID);
        assert_eq!(call!(self, C_GetMechanismInfo(self.slot, 0x8001_E101, &raw mut info)), CKR_OK);
        assert_eq!(self.init(&mut [7; 12], CKM_AES_GCM), CKR_MECHANISM_INVALID);
    }

    fn judges_templates(&self) {
        self.imitate(r#""template":{"refuse":["CKA_SIGN"],"need":["CKA_PRIVATE"],"unique":true}"#);
        let usual = [(CKA_TOKEN, 1), (CKA_PRIVATE, 1), (CKA_LABEL, 2), (CKA_ID, 3)];
        assert_eq!(self.generate(&[&usual[..], &[(CKA_SIGN, 0)]].concat()), Err(CKR_ATTRIBUTE_TYPE_INVALID));
        assert_eq!(self.generate(&[usual[0], usual[2]]), Err(CKR_TEMPLATE_INCOMPLETE));
        assert_eq!(self.generate(&usual[..2]), Err(CKR_ATTRIBUTE_VALUE_INVALID));
        self.generate(&usual).unwrap();
        self.imitate(r#""template":{"refuse":["CKA_SIGN"],"refused":"CKR_GENERAL_ERROR","explicit":["CKA_WRAP"]}"#);
        assert_eq!(self.generate(&[usual[0], (CKA_SIGN, 0)]), Err(CKR_GENERAL_ERROR));
        assert_eq!(self.generate(&usual[..1]), Err(CKR_TEMPLATE_INCOMPLETE));
        self.generate(&[usual[0], (CKA_WRAP, 0)]).unwrap();
        self.imitate(r#""template":{"refuse":["CKA_SIGN"],"need":["CKA_PRIVATE"],"unique":true}"#);
        assert_eq!(self.generate(&usual), Err(CKR_ATTRIBUTE_VALUE_INVALID), "the id is taken");

        self.imitate(r#""template":{"only":["CKA_LABEL","0x8001E101"]}"#);
        assert_eq!(self.generate(&usual), Err(CKR_TEMPLATE_INCONSISTENT));
        let key = self.generate(&[(CKA_LABEL, 4), (0x8001_E101, 19)]).unwrap();
        let own = Self { key, control: self.control.clone(), ..*self };
        let sealed = own.seal(&mut [7; 12], 200).unwrap();
        assert_eq!(own.open(&[7; 12], &sealed).unwrap(), PLAINTEXT);
    }

    /// A key whose attributes have one byte each, and the length of 256 bits unless only a label is wanted.
    fn generate(&self, attributes: &[(CK_ATTRIBUTE_TYPE, CK_BYTE)]) -> Result<CK_OBJECT_HANDLE, CK_RV> {
        let mut values = attributes.to_vec();
        let mut length: CK_ULONG = 32;
        let bare = attributes.iter().all(|(name, _)| *name == CKA_LABEL || *name >= CKA_VENDOR_DEFINED);
        let mut template: Vec<_> = values
            .iter_mut()
            .map(|(type_, value)| CK_ATTRIBUTE { type_: *type_, pValue: ptr::from_mut(value).cast(), ulValueLen: 1 })
            .collect();
        if !bare {
            template.push(CK_ATTRIBUTE { type_: CKA_VALUE_LEN, pValue: (&raw mut length).cast(), ulValueLen: 8 });
        }
        let mut mechanism = CK_MECHANISM { mechanism: CKM_AES_KEY_GEN, pParameter: ptr::null_mut(), ulParameterLen: 0 };
        let (mut key, count) = (0, template.len() as CK_ULONG);
        let code =
            call!(self, C_GenerateKey(self.session, &raw mut mechanism, template.as_mut_ptr(), count, &raw mut key));
        if code == CKR_OK { Ok(key) } else { Err(code) }
    }

    fn judges_logins(&self, directory: &Path) {
        let pin = fs::read_to_string(directory.join("pin")).unwrap();
        let log_in = |user, pin: &str| {
            let mut pin = pin.as_bytes().to_vec();
            call!(self, C_Login(self.session, user, pin.as_mut_ptr(), pin.len() as CK_ULONG))
        };
        assert_eq!(call!(self, C_Logout(self.session)), CKR_OK);
        self.imitate(r#""login":{"user":2147483649}"#);
        assert_eq!(log_in(CKU_USER, &pin), CKR_USER_TYPE_INVALID);
        assert_eq!(log_in(0x8000_0001, &pin), CKR_OK);
        assert_eq!(call!(self, C_Logout(self.session)), CKR_OK);
        self.imitate(r#""login":{"name":{"name":"kms","wrong":"CKR_PIN_EXPIRED"}}"#);
        assert_eq!(log_in(CKU_USER, &pin), CKR_PIN_EXPIRED);
        assert_eq!(log_in(CKU_USER, "kms:wrong pin"), CKR_PIN_EXPIRED);
        assert_eq!(log_in(CKU_USER, &format!("kms:{pin}")), CKR_OK);
        assert_eq!(call!(self, C_Logout(self.session)), CKR_OK);
        self.imitate(&format!(r#""login":{{"needless":"{pin}"}}"#));
        let other = self.open_session().unwrap();
        assert_eq!(log_in(CKU_USER, "no PIN at all"), CKR_OK);
        assert_eq!(call!(self, C_CloseSession(other)), CKR_OK);
        self.set("{}");
        assert_eq!(log_in(CKU_USER, &pin), CKR_USER_ALREADY_LOGGED_IN);
    }

    fn follows_the_rules(&self) {
        self.set(
            r#"{"rules":[{"function":"C_EncryptInit","after":1,"times":2,"action":{"return":"CKR_DEVICE_ERROR"}}]}"#,
        );
        let answers: Vec<_> = (0..4).map(|_| self.seal(&mut [7; 12], 200).err()).collect();
        assert_eq!(answers, [None, Some(CKR_DEVICE_ERROR), Some(CKR_DEVICE_ERROR), None]);
        self.set(r#"{"rules":[{"function":"C_Encrypt","action":{"flip_bit":9}}]}"#);
        let altered = self.seal(&mut [7; 12], 200).unwrap();
        self.set(r#"{"rules":[{"function":"C_Encrypt","action":{"truncate":9}}]}"#);
        let cut = self.seal(&mut [7; 12], 200).unwrap();
        self.set("{}");
        let sealed = self.seal(&mut [7; 12], 200).unwrap();
        assert_eq!(altered[1], sealed[1] ^ 2);
        assert_eq!((&altered[2..], &*cut), (&sealed[2..], &sealed[..sealed.len() - 9]));
    }

    fn open_session(&self) -> Result<CK_SESSION_HANDLE, CK_RV> {
        let mut session = 0;
        let flags = CKF_SERIAL_SESSION | CKF_RW_SESSION;
        let code = call!(self, C_OpenSession(self.slot, flags, ptr::null_mut(), None, &raw mut session));
        if code == CKR_OK { Ok(session) } else { Err(code) }
    }

    fn seal(&self, iv: &mut [u8], room: usize) -> Result<Vec<u8>, CK_RV> {
        match self.init(iv, CKM_AES_GCM) {
            CKR_OK => self.finish(room),
            code => Err(code),
        }
    }

    fn init(&self, iv: &mut [u8], number: CK_MECHANISM_TYPE) -> CK_RV {
        let mut parameters = parameters(iv);
        let mut mechanism = mechanism(&mut parameters, number);
        call!(self, C_EncryptInit(self.session, &raw mut mechanism, self.key))
    }

    fn finish(&self, room: usize) -> Result<Vec<u8>, CK_RV> {
        let (mut output, mut length) = (vec![0; room], room as CK_ULONG);
        let input = PLAINTEXT.as_ptr().cast_mut();
        let code = call!(
            self,
            C_Encrypt(self.session, input, PLAINTEXT.len() as CK_ULONG, output.as_mut_ptr(), &raw mut length)
        );
        output.truncate(length as usize);
        if code == CKR_OK { Ok(output) } else { Err(code) }
    }

    fn open(&self, iv: &[u8], ciphertext: &[u8]) -> Result<Vec<u8>, CK_RV> {
        let mut iv = iv.to_vec();
        let mut parameters = parameters(&mut iv);
        let mut mechanism = mechanism(&mut parameters, CKM_AES_GCM);
        let code = call!(self, C_DecryptInit(self.session, &raw mut mechanism, self.key));
        if code != CKR_OK {
            return Err(code);
        }
        let (mut output, mut length) = (vec![0; 200], 200);
        let input = ciphertext.as_ptr().cast_mut();
        let code = call!(
            self,
            C_Decrypt(self.session, input, ciphertext.len() as CK_ULONG, output.as_mut_ptr(), &raw mut length)
        );
        output.truncate(length as usize);
        if code == CKR_OK { Ok(output) } else { Err(code) }
    }

    fn imitate(&self, fields: &str) {
        self.set(&format!(r#"{{"imitate":{{{fields}}}}}"#));
    }

    fn set(&self, control: &str) {
        let new = self.control.with_extension("new");
        // Another size each time, so that no change goes unseen.
        let size = fs::metadata(&self.control).map_or(0, |file| file.len() as usize);
        fs::write(&new, format!("{control:<width$}", width = if size == 400 { 401 } else { 400 })).unwrap();
        fs::rename(&new, &self.control).unwrap();
    }
}

fn split_end(sealed: &[u8], length: usize) -> (Vec<u8>, Vec<u8>) {
    let (ciphertext, iv) = sealed.split_at(sealed.len() - length);
    (iv.to_vec(), ciphertext.to_vec())
}

fn parameters(iv: &mut [u8]) -> CK_GCM_PARAMS {
    CK_GCM_PARAMS {
        pIv: if iv.is_empty() { ptr::null_mut() } else { iv.as_mut_ptr() },
        ulIvLen: iv.len() as CK_ULONG,
        ulIvBits: iv.len() as CK_ULONG * 8,
        pAAD: AAD.as_ptr().cast_mut(),
        ulAADLen: AAD.len() as CK_ULONG,
        ulTagBits: 128,
    }
}

fn mechanism(parameters: &mut CK_GCM_PARAMS, number: CK_MECHANISM_TYPE) -> CK_MECHANISM {
    CK_MECHANISM {
        mechanism: number,
        pParameter: ptr::from_mut(parameters).cast(),
        ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
    }
}
