//! Which credential speaks for a storage account, found by the ecosystem's usual variables. For every `X` the variable
//! `X_FILE` may name a file instead, as container platforms mount secrets.
//!
//! The first that is there wins: account key, SAS token, connection string, workload identity, client secret, then
//! Azurite's published key for its built-in account, else the machine's managed identity.

use std::collections::HashMap;
use std::fmt;

use zeroize::Zeroizing;

/// Azurite's built-in account, and the key that its documentation publishes for it.
const AZURITE_ACCOUNT: &str = "devstoreaccount1";
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const KEYS: &[&str] = &["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY"];
const SAS_TOKENS: &[&str] = &["AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"];
const ACCOUNTS: &[&str] = &["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"];
const CONNECTION_STRING: &str = "AZURE_STORAGE_CONNECTION_STRING";
/// A credential file is one line.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What authenticates. Wiped when dropped, never shown.
pub(super) enum Secret {
    Key(Zeroizing<String>),
    Sas(Zeroizing<String>),
    Workload { client: String, tenant: String, token_file: String, authority: Option<String> },
    Client { client: String, tenant: String, secret: Zeroizing<String>, authority: Option<String> },
    Managed { client: Option<String>, endpoint: Option<String> },
}

/// A credential and where it came from.
pub(super) struct Credential {
    pub(super) secret: Secret,
    /// For error texts: `the account key of AZURE_STORAGE_ACCOUNT_KEY`.
    pub(super) source: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({})", self.source)
    }
}

/// The environment, as far as it matters here.
pub(super) struct Variables(HashMap<String, Zeroizing<String>>);

impl Variables {
    /// Those of this process. Empty values count as absent.
    pub(super) fn process() -> Self {
        let wanted = |name: &str| name.starts_with("AZURE_") || name == "IDENTITY_ENDPOINT";
        let all =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self(
            all.filter(|(name, value)| wanted(name) && !value.is_empty())
                .map(|(n, v)| (n, Zeroizing::new(v)))
                .collect(),
        )
    }

    fn plain(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|value| value.to_string())
    }

    /// The value of `name`, or the content of the file that `<name>_FILE` names; with the variable's name.
    fn secret(&self, name: &str) -> Result<Option<(Zeroizing<String>, String)>, String> {
        if let Some(value) = self.0.get(name) {
            return Ok(Some((value.clone(), name.to_owned())));
        }
        let file_variable = format!("{name}_FILE");
        let Some(path) = self.0.get(&file_variable) else { return Ok(None) };
        let read = || -> std::io::Result<Zeroizing<String>> {
            if std::fs::metadata(path.as_str())?.len() > FILE_BYTES_MAX {
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "it is too large"));
            }
            Ok(Zeroizing::new(std::fs::read_to_string(path.as_str())?.trim().to_owned()))
        };
        match read() {
            Ok(text) if text.is_empty() => Err(format!("the file {} of {file_variable} is empty", path.as_str())),
            Ok(text) => Ok(Some((text, format!("{file_variable} ({})", path.as_str())))),
            Err(error) => Err(format!("the file {} of {file_variable} cannot be read: {error}", path.as_str())),
        }
    }

    fn first_secret(&self, names: &[&str]) -> Result<Option<(Zeroizing<String>, String)>, String> {
        for name in names {
            if let Some(found) = self.secret(name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl Credential {
    /// Finds the credential for `account`.
    pub(super) fn find(account: &str, variables: &Variables) -> Result<Self, String> {
        // Keys of another account would only fail later, as a 403 that says nothing.
        let named = ACCOUNTS.iter().find_map(|name| Some((*name, variables.plain(name)?)));
        if let Some((variable, other)) = named.filter(|(_, name)| name != account) {
            return Err(format!("{variable} is {other:?}, but the URL names the account {account:?}: make them agree"));
        }
        if let Some((key, from)) = variables.first_secret(KEYS)? {
            return Ok(Self { secret: Secret::Key(key), source: format!("the account key of {from}") });
        }
        if let Some((token, from)) = variables.first_secret(SAS_TOKENS)? {
            let token = Zeroizing::new(token.trim_start_matches('?').to_owned());
            return Ok(Self { secret: Secret::Sas(token), source: format!("the SAS token of {from}") });
        }
        if let Some((text, from)) = variables.secret(CONNECTION_STRING)? {
            return Self::of_connection_string(account, &text, &from);
        }
        Self::of_identity(account, variables)
    }

    fn of_connection_string(account: &str, text: &str, from: &str) -> Result<Self, String> {
        let fields: HashMap<&str, &str> = text.split(';').filter_map(|field| field.trim().split_once('=')).collect();
        if let Some(other) = fields.get("AccountName").filter(|name| **name != account) {
            return Err(format!("{from} is for the account {other:?}, but the URL names {account:?}"));
        }
        let secret = if let Some(key) = fields.get("AccountKey") {
            Secret::Key(Zeroizing::new((*key).to_owned()))
        } else if let Some(token) = fields.get("SharedAccessSignature") {
            Secret::Sas(Zeroizing::new(token.trim_start_matches('?').to_owned()))
        } else {
            return Err(format!("{from} holds neither AccountKey nor SharedAccessSignature"));
        };
        Ok(Self { secret, source: format!("the connection string of {from}") })
    }

    fn of_identity(account: &str, variables: &Variables) -> Result<Self, String> {
        let client = variables.plain("AZURE_CLIENT_ID");
        let tenant = variables.plain("AZURE_TENANT_ID");
        let authority = variables.plain("AZURE_AUTHORITY_HOST");
        if let (Some(client), Some(tenant)) = (&client, &tenant) {
            let (client, tenant) = (client.clone(), tenant.clone());
            if let Some(token_file) = variables.plain("AZURE_FEDERATED_TOKEN_FILE") {
                let source = format!("the workload identity {client} of AZURE_FEDERATED_TOKEN_FILE");
                return Ok(Self { secret: Secret::Workload { client, tenant, token_file, authority }, source });
            }
            if let Some((secret, from)) = variables.secret("AZURE_CLIENT_SECRET")? {
                let source = format!("the client secret of {from} for {client}");
                return Ok(Self { secret: Secret::Client { client, tenant, secret, authority }, source });
            }
        }
        if account == AZURITE_ACCOUNT {
            let secret = Secret::Key(Zeroizing::new(AZURITE_KEY.to_owned()));
            return Ok(Self { secret, source: "Azurite's well-known key, as no credential is set".into() });
        }
        let source = match &client {
            Some(client) => format!("the managed identity {client}, as no other credential is set"),
            None => "the machine's managed identity, as no other credential is set".into(),
        };
        let endpoint = variables.plain("IDENTITY_ENDPOINT");
        Ok(Self { secret: Secret::Managed { client, endpoint }, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        Variables(pairs.iter().map(|(n, v)| ((*n).to_owned(), Zeroizing::new((*v).to_owned()))).collect())
    }

    fn source(account: &str, pairs: &[(&str, &str)]) -> String {
        Credential::find(account, &variables(pairs)).expect("a credential").source
    }

    #[test]
    fn the_first_credential_wins_and_its_source_is_named() {
        let workload =
            [("AZURE_CLIENT_ID", "c"), ("AZURE_TENANT_ID", "t"), ("AZURE_FEDERATED_TOKEN_FILE", "/var/token")];
        assert!(source("acc", &workload).contains("workload identity"));
        assert!(source("acc", &[("AZURE_STORAGE_SAS_KEY", "?sv=1")]).contains("AZURE_STORAGE_SAS_KEY"));
        let both = [("AZURE_STORAGE_SAS_KEY", "sv=1"), ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")];
        assert!(source("acc", &both).contains("AZURE_STORAGE_ACCOUNT_KEY"));
        assert!(source("acc", &[]).contains("managed identity"));
        assert!(source("devstoreaccount1", &[]).contains("Azurite"));
    }

    #[test]
    fn a_credential_of_another_account_is_refused_at_once() {
        let pairs = [("AZURE_STORAGE_ACCOUNT_NAME", "other"), ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")];
        let problem = Credential::find("acc", &variables(&pairs)).expect_err("refused");
        assert!(problem.contains("other") && problem.contains("acc"), "{problem}");
    }

    #[test]
    fn a_file_may_hold_the_secret_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().expect("temp dir");
        let file = folder.path().join("key");
        std::fs::write(&file, "a2V5\n").expect("written");
        let path = file.display().to_string();
        let found = Credential::find("acc", &variables(&[("AZURE_STORAGE_ACCOUNT_KEY_FILE", &path)])).expect("found");
        assert!(matches!(&found.secret, Secret::Key(key) if key.as_str() == "a2V5"));
        let missing = [("AZURE_STORAGE_ACCOUNT_KEY_FILE", "/nowhere/key")];
        let problem = Credential::find("acc", &variables(&missing)).expect_err("missing");
        assert!(problem.contains("/nowhere/key"), "{problem}");
    }

    #[test]
    fn connection_strings_give_their_key_or_token() {
        let text = "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=a2V5==;EndpointSuffix=core.windows.net";
        let found = Credential::find("acc", &variables(&[(CONNECTION_STRING, text)])).expect("found");
        assert!(matches!(&found.secret, Secret::Key(key) if key.as_str() == "a2V5=="));
        assert!(!format!("{found:?}").contains("a2V5"));
    }
}
