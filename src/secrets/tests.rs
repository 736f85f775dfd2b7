//! Tables of texts with their secrets, and texts of any bytes.

use proptest::prelude::*;

use super::*;

/// The texts that are taken for secrets.
fn found(name: &str, text: &str) -> Vec<String> {
    recognise(name, text.as_bytes(), &Overrides::default())
        .into_iter()
        .map(|one| text[one.span].to_owned())
        .collect()
}

fn check(rows: &[(&str, &str, &[&str])]) {
    let mut wrong = String::new();
    for (name, text, expected) in rows {
        let found = found(name, text);
        if found != *expected {
            wrong.push_str(&format!(
                "{name}: {text:?}\n  found {found:?}\n  not   {expected:?}\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn dialects_of_env() {
    check(&[
        (".env", "DB_PASSWORD=s3cret", &["s3cret"]),
        (".env", "DB_PASSWORD=a#b", &["a#b"]),
        (".env", "DB_PASSWORD=\"x\"y", &["x\"y"]),
        (".env", "export API_KEY='k v'", &["k v"]),
        (".env", "DB_PASSWORD = spaced", &["spaced"]),
        (".env", "DB_PASSWORD: yaml", &["yaml"]),
        (".env", "\u{feff}DB_PASSWORD=bom\r\nA=b\r\n", &["bom"]),
        (".env", "DB_PASSWORD=one\nDB_PASSWORD=two", &["one", "two"]),
        (
            ".env",
            "DB_PASSWORD=\"two\nlines\"\nHOST=h",
            &["two\nlines"],
        ),
        (".env", "DB_PASSWORD='it\nis'\nHOST=h", &["it\nis"]),
        (".env", "DB_PASSWORD=\"a\\\"b\"", &["a\\\"b"]),
        (".env", "DB_PASSWORD=${OTHER}", &[]),
        (
            ".env",
            "DB_PASSWORD=${OTHER:-geheim}",
            &["${OTHER:-geheim}"],
        ),
        (".env", "DB_PASSWORD=", &[]),
        (".env", "DB_PASSWORD=\"\"", &[]),
        (".env", "HOST=localhost\nPORT=5432", &[]),
        (".env", "DATABASE_URL=postgres://u:pw1@h/db", &["pw1"]),
        (".env", "URL=http://h:8080/a@b", &[]),
        (".env", "this is no assignment", &["this is no assignment"]),
        (".env", "A=\"never closed", &["A=\"never closed"]),
        (".env", "# OLD_PASSWORD=gone1", &["gone1"]),
        (".env", "MAIL_PASS=abc def", &["abc def"]),
        (".env", "A=b DB_PASSWORD=x9", &["x9"]),
        (".env", "BARE", &[]),
    ]);
    // A quote that never closes takes what is behind it.
    assert_eq!(found(".env", "HOST=h\nA=\"x\nB=c\n").len(), 1);
}

#[test]
fn formats_have_their_places() {
    check(&[
        (
            ".pgpass",
            "# c\nh:5432:db:u:pa\\:ss\n*:*:*:x:y z\n",
            &["pa\\:ss", "y z"],
        ),
        (".pgpass", "too:short", &["too:short"]),
        (
            "pg_service.conf",
            "[a]\nhost=h\npassword=abc1\nuser=u",
            &["abc1"],
        ),
        (
            "postgresql.conf",
            "primary_conninfo = 'host=h user=r password=abc1 port=5432'",
            &["abc1"],
        ),
        (
            "postgresql.conf",
            "primary_conninfo = 'host=h password=''a b'' port=5'",
            &["a b"],
        ),
        (
            "postgresql.conf",
            "password_encryption = scram-sha-256\nssl_key_file = '/etc/k.key'",
            &[],
        ),
        ("postgresql.conf", "ssl_passphrase_command = 'cat /x'", &[]),
        (
            "pg_hba.conf",
            "host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 ldap ldapserver=l ldapbindpasswd=geh1",
            &["geh1"],
        ),
        (
            "redis.conf",
            "requirepass foobared\nmasterauth \"x y\"\nport 6379",
            &["foobared", "x y"],
        ),
        (
            "users.acl",
            "user a on >pw1 ~* +@all #9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            &[
                "pw1",
                "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            ],
        ),
        (
            "sentinel.conf",
            "sentinel auth-pass mymaster geh1",
            &["geh1"],
        ),
        ("userlist.txt", "\"app\" \"geheim\"\n", &["geheim"]),
        (
            "app.service",
            "[Service]\nEnvironment=\"A=1\" \"DB_PASSWORD=x1 y\"\nEnvironment=API_TOKEN=abc1 B=2",
            &["x1 y", "abc1"],
        ),
        (
            "nginx.conf",
            "proxy_set_header Authorization \"Basic dXNlcjpwYXNz\";\nssl_certificate_key /etc/k.pem;",
            &["Basic dXNlcjpwYXNz"],
        ),
        (
            "crontab",
            "MAILTO=x\n1 * * * * root PGPASSWORD=geh1 psql -h h\n2 * * * * curl -u bob:geh2 https://h",
            &["geh1", "geh2"],
        ),
        (
            "crontab",
            "1 * * * * redis-cli -a geh1 ping; mysql -uroot -pgeh2 x",
            &["geh1", "geh2"],
        ),
        (".netrc", "machine h login u password geh1", &["geh1"]),
        (
            "haproxy.cfg",
            "stats auth admin:geh1\n user a insecure-password geh2",
            &["geh1", "geh2"],
        ),
        ("app.ini", "[db]\npassword = a;b c\nhost=h", &["a;b c"]),
        (
            "app.properties",
            "spring.datasource.password=geh1\nserver.port=8080",
            &["geh1"],
        ),
        (
            "a.xml",
            "<a><password>geh1</password><add key=\"DbPassword\" value=\"geh2\"/><entry key=\"api.token\">geh3</entry></a>",
            &["geh1", "geh2", "geh3"],
        ),
        (
            "a.toml",
            "[db]\npassword = \"geh1\"\nx = { token = \"geh2\", port = 1 }\nsecret = \"\"\"\nl1\nl2\"\"\"",
            &["geh1", "geh2", "l1\nl2"],
        ),
        (
            "wp-config.php",
            "define('DB_PASSWORD', 'geh1');\n$db['password'] = 'geh2';\n'api_key' => 'geh3',",
            &["geh1", "geh2", "geh3"],
        ),
        (
            ".npmrc",
            "//registry.npmjs.org/:_authToken=abcd1",
            &["abcd1"],
        ),
        ("x.conf", "Server=h;Password=geh1;Port=1", &["geh1"]),
        (
            "id",
            "a\n-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\nb",
            &["-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----"],
        ),
        (
            "c.pem",
            "-----BEGIN CERTIFICATE-----\nMIIDazCCAlOgAwIBAgIUQ3Jd9fKx0vLm2Zp8Rt5Yw1BnMA0GCSqGSIb3DQEBCwUA\n-----END CERTIFICATE-----\n",
            &[],
        ),
        (
            "htpasswd",
            "bob:$apr1$abc$defghijk",
            &["$apr1$abc$defghijk"],
        ),
        (
            "known",
            "k = AKIAIOSFODNN7EXAMPLE",
            &["AKIAIOSFODNN7EXAMPLE"],
        ),
        (
            "authorized_keys",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIQ3Jd9fKx0vLm2Zp8Rt5Yw1Bn bob@h",
            &[],
        ),
        (
            "x",
            "image: app@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            &[],
        ),
        (
            "x",
            "something: q3Jd9fKx0vLm2Zp8Rt5Yw1Bn",
            &["q3Jd9fKx0vLm2Zp8Rt5Yw1Bn"],
        ),
        (
            "x",
            "git_commit: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
            &[],
        ),
    ]);
}

#[test]
fn a_doubled_quote_is_one_of_the_value() {
    check(&[
        (
            "pgbouncer.ini",
            "a = host=h user=u password='o''x 7' pool_size=3",
            &["o''x 7"],
        ),
        ("p.yml", "password: 'lots''o''locks'", &["lots''o''locks"]),
        (
            "m.sql",
            "CREATE ROLE r LOGIN PASSWORD 'can''t' VALID UNTIL 'x';",
            &["can''t"],
        ),
        ("p.yml", "password: ''", &[]),
        ("a.env", "PASSWORD=''", &[]),
    ]);
}

#[test]
fn columns_of_tables_and_lists_of_logins_are_secret() {
    check(&[
        (
            "devices.csv",
            "name;login;pw;remark\nsw1;admin;Brygge1;first floor\nsw2;admin;;none\nsw3;a;\"x;\"\"y\";z\n",
            &["Brygge1", "x;\"\"y"],
        ),
        ("plain.csv", "name,size,owner\na,1,b\n", &[]),
        (
            "rsyncd.secrets",
            "# users\nnightly:moon light\n",
            &["moon light"],
        ),
        (
            "x.ldif",
            "dn: cn=a\nuserPassword:: UGFwaXJzdG9wcDE=\n",
            &["UGFwaXJzdG9wcDE="],
        ),
        (
            "t.xml",
            "<pass><![CDATA[<rain & \"sun\">]]></pass>",
            &["<rain & \"sun\">"],
        ),
        (
            "redis.conf",
            "# user m on >catsanddogs ~* +info",
            &["catsanddogs"],
        ),
        ("redis.conf", "# user <name> on ... >password", &[]),
        ("sssd.conf", "ldap_default_authtok = abc12", &["abc12"]),
        (".env", "SMTP_PASSWORD=${SMTP_PASSWORD:?set me}", &[]),
        ("p.yml", "pgpass: /tmp/pgpass0", &[]),
    ]);
}

#[test]
fn directives_and_statements_have_their_places() {
    check(&[
        ("snmpd.conf", "rocommunity l3it 10.0.0.0/8", &["l3it"]),
        (
            "snmpd.conf",
            "createUser u SHA \"ab cd\" AES \"x#y\"",
            &["ab cd", "x#y"],
        ),
        ("ipsec.secrets", "1.2.3.4 h : PSK \"p#G q\"", &["p#G q"]),
        ("sasl_passwd", "[smtp.h]:587  app:hunter2xq", &["hunter2xq"]),
        (
            "u.sql",
            "CREATE ROLE app LOGIN PASSWORD 'hunter 2';",
            &["hunter 2"],
        ),
        (
            "u.sql",
            "-- CREATE USER x IDENTIFIED BY 'hunter2';",
            &["hunter2"],
        ),
        (
            "u.sql",
            "OPTIONS (user 'x', password 'hunter2xs');",
            &["hunter2xs"],
        ),
        ("ks.cfg", "rootpw --plaintext hunter2", &["hunter2"]),
        (
            "user-data.yml",
            "chpasswd:\n  list: |\n    root:hunter2\n",
            &["hunter2"],
        ),
        ("h.conf", "SetEnv DB_PASSWORD hunter2xq", &["hunter2xq"]),
        (
            "n.conf",
            "fastcgi_param DB_PASSWORD hunter2xq;",
            &["hunter2xq"],
        ),
        (
            "6379.conf",
            "user a on >hunter2xq ~*\n# requirepass old2",
            &["hunter2xq", "old2"],
        ),
        (
            "p.conf",
            "ssl_passphrase_command = 'echo LEAK99x'",
            &["LEAK99x"],
        ),
        (
            "b.sh",
            "curl -uapp:hunter2xq h; curl --user=app:hunter3xq h",
            &["hunter2xq", "hunter3xq"],
        ),
        (
            "crontab",
            "*/5 * * * * root sync --user app --password hunter2xq",
            &["hunter2xq"],
        ),
        ("a.service", "  --token s3cr3tval9 \\", &["s3cr3tval9 \\"]),
        ("up-auth.txt", "me\nhunter2\n", &["hunter2"]),
        (
            "x.conf",
            "dsn = \"u:hun+2@tcp(h:1)/\"",
            &["u:hun+2@tcp(h:1)/"],
        ),
        (
            ".env",
            "SLACK_WEBHOOK_URL=https://hooks.slack.com/services/T0/B0/FAKEq3Jd9fKx",
            &["FAKEq3Jd9fKx"],
        ),
        (
            ".env",
            "VAULT_SECRET_ID=6a174c20-f6de-a53c-74d2-6018fcceff64",
            &["6a174c20-f6de-a53c-74d2-6018fcceff64"],
        ),
        (
            ".env",
            "REDIS_PASSWORD_DB=hunter2xy\nNO_REPLY_PASSWORD=hunter2xq\nPUBLIC_DB_PASSWORD=hunter2xz",
            &["hunter2xy", "hunter2xq", "hunter2xz"],
        ),
        (
            "postgresql.conf",
            "primary_conninfo = 'host=a user=rep password=ab,TAIL'",
            &["ab,TAIL"],
        ),
        ("a.service", "Environment=DB_PASSWORD=ab&TAIL", &["ab&TAIL"]),
        ("a.yaml", "e:\n  - DB_PASSWORD=hun,TAIL", &["hun,TAIL"]),
        (
            "a.yaml",
            "password: &pw hunter2pass",
            &["&pw", "hunter2pass"],
        ),
        ("a.yaml", "password:\n  LEAKnext9", &["LEAKnext9"]),
        (
            "a.yaml",
            "passwords: [LEAKa1, LEAKb2]",
            &["LEAKa1", "LEAKb2"],
        ),
        ("a.yaml", "secrets:\n  db: LEAKmap1", &["LEAKmap1"]),
        (
            "a.toml",
            "[secrets]\ndb = \"hunter2xq\"\n[other]\ndb = \"x\"",
            &["hunter2xq"],
        ),
        (
            "a.tf",
            "admin_passwords = { alice = \"a=b\", bob = \"hunter2\" }",
            &["a=b", "hunter2"],
        ),
        (
            "x.conf",
            "# old password: correct LEAK two",
            &["correct LEAK two"],
        ),
    ]);
}

#[test]
fn lists_of_users_have_their_passwords() {
    check(&[
        (
            "realm.properties",
            "a: b1 c, admin,user\nd: OBF:1v2j,user\n",
            &["b1 c", "OBF:1v2j"],
        ),
        (
            "users.properties",
            "admin=x7y\nk = z,_g_:w\n",
            &["x7y", "z"],
        ),
        (
            "passwd.client",
            "# a b\n*.h:u@h:p^^q\n#h2:u2:old one\n",
            &["p^^q", "old one"],
        ),
        ("jmxremote.password", "monitor QED x\n", &["QED x"]),
        (
            "passwd",
            "root:x:0:0::/:/bin/sh\na:{PLAIN}b:1:2::\n",
            &["{PLAIN}b"],
        ),
        ("passwd.old", "[users]\nharry = hp\n", &["hp"]),
        (
            "local.ini",
            "[admins]\nroot = cp, op\n[users]\ndefault_theme = dark\n",
            &["cp"],
        ),
        (
            "chrony.keys",
            "# n\n1 SHA1 HEX:AAE5\n25 MD5 x\n",
            &["HEX:AAE5", "x"],
        ),
        (
            "pins.csv",
            "name|Kennwort|PIN\na|b c|1234\n",
            &["b c", "1234"],
        ),
        (
            "s.sql",
            "INSERT INTO u (name, password) VALUES ('a', 'b'), ('c', 'd''e');\nSELECT ('x', 'y');",
            &["b", "d''e"],
        ),
        (
            "jaas.conf",
            "x.PlainLoginModule required\n user_bob=\"hunter2\";",
            &["hunter2"],
        ),
    ]);
}

#[test]
fn positions_among_words_make_secrets() {
    check(&[
        (
            "core-confg",
            "hostname a\nenable secret 5 hash1\nusername u password 7 094F47\ninterface v\nkey chain K\n key 1\n  key-string Lt9\nsnmp-server community pond RO 12\nneighbor 10.0.0.1 password bgp\nno ip unreachables\n",
            &["hash1", "094F47", "Lt9", "pond", "bgp"],
        ),
        (
            "fg.txt",
            "config system admin\nconfig vpn x\n set password ENC AK1x\n set psksecret ab\n",
            &["AK1x", "ab"],
        ),
        (
            "wireless",
            "config wifi-iface\n\toption key 'two words'\n",
            &["two words"],
        ),
        (
            "upsmon.conf",
            "MONITOR a@b 1 u pond slave\nCERTIDENT \"n\" \"p-q\"",
            &["pond", "p-q"],
        ),
        (
            "squid.conf",
            "cachemgr_passwd pond all\ncache_peer h parent 1 0 login=u:l;an\nauth_param basic credentialsttl 2 hours",
            &["pond", "l;an"],
        ),
        ("n.conf", "secure_link_md5 \"$uri pond\";", &["pond"]),
        (".fetchmailrc", "user 'a' pass 'b3' is c here", &["b3"]),
        ("sip.conf", "register => 23:pond@h/1", &["pond"]),
        ("key.conf", "key \"x\" { secret \"pond\"; };", &["pond"]),
        ("common-password", "password requisite pam_deny.so", &[]),
    ]);
}

#[test]
fn commands_have_secrets_in_their_arguments() {
    for (line, secret) in [
        ("echo 'root:a#1' | chpasswd", "a#1"),
        ("echo pond | docker login --password-stdin", "pond"),
        ("a_command='curl -s -u u:p.q https://h -d \"%n\"'", "p.q"),
        ("lftp -u u,p; -e 'ls' h", "p;"),
        ("smbclient //h/s -U u%pond", "pond"),
        ("sqlplus system/pond@db @x.sql", "pond"),
        ("openssl rsa -passin pass:pond -in k", "pond"),
        ("helper /usr/lib/ext_ldap_group_acl -D x -w a.B -h h", "a.B"),
        ("rabbitmqctl add_user u pond", "pond"),
        (
            "test: [\"CMD\", \"redis-cli\", \"-a\", \"pond\", \"ping\"]",
            "pond",
        ),
        ("docker login -u u -p pond h", "pond"),
    ] {
        assert_eq!(found("x.txt", line), [secret], "{line}");
    }
    for line in [
        "docker run -p 80:80 x",
        "echo a | tee b",
        "sshpass -p \"$PW\" ssh h",
    ] {
        assert!(found("x.txt", line).is_empty(), "{line}");
    }
}

#[test]
fn texts_are_quoted_in_many_ways() {
    check(&[
        ("a.php", "define( 'DB_PASSWORD', 'it\\'s' );", &["it\\'s"]),
        ("a.pm", "Set($DatabasePassword, q{a{b}!});", &["a{b}!"]),
        ("a.lua", "app_secret = [[[gl]o[seil]]", &["[[gl]o[seil"]),
        ("a.sh", "X_PASSWORD='it'\"'\"'s'", &["it'\"'\"'s'"]),
        ("a.py", "TOKEN = r'a\\b'", &["a\\b"]),
        (
            "a.ps1",
            "ConvertTo-SecureString \"a b\" -AsPlainText",
            &["a b"],
        ),
        ("a.php", "$d = new PDO('pgsql:x', 'u', 'p q');", &["p q"]),
        ("a.java", "props.put(\"db.password\", \"p q\");", &["p q"]),
        ("zabbix.conf", "DBPassword==a=b=", &["=a=b="]),
        ("a.nmconnection", "password=a;b;", &["a;b;"]),
        ("a.yml", "e:\n  - X_SECRET=two words # no\n", &["two words"]),
        (
            "a.config",
            "<a c=\"User Id=w;Password=G&amp;Z;M=T\"/>",
            &["G&amp;Z"],
        ),
        (
            "b.config",
            "<a c=\"Host=r;Password=&quot;e;z&quot;;D=r\"/>",
            &["e;z"],
        ),
        ("u.conf", "url = \"http://h/q?db=x&u=g&p=w%C3\"", &["w%C3"]),
    ]);
}

#[test]
fn elements_and_attributes_name_secrets() {
    check(&[
        (
            "a.xml",
            "<p value=\"pond\" name=\"x.password\"/>",
            &["pond"],
        ),
        ("b.xml", "<password>\n  pond\n</password>", &["pond"]),
        (
            "c.xml",
            "<property>\n<name>fs.secret.key</name>\n<value>pond</value></property><property><name>a</name><value>b</value></property>",
            &["pond"],
        ),
        (
            "d.plist",
            "<dict><key>Password</key>\n<string>pond</string></dict>",
            &["pond"],
        ),
        (
            "e.xml",
            "<Password><Value>pond</Value><Plain>true</Plain></Password>",
            &["pond"],
        ),
        ("f.xml", "<string name=\"api_key\">pond</string>", &["pond"]),
        (
            "g.ovpn",
            "<http-proxy-user-pass>\nme\npond\n</http-proxy-user-pass>",
            &["pond"],
        ),
        (
            "h.xml",
            "<credentials><item><id>a</id><text>b</text></item></credentials>",
            &[],
        ),
        (
            "i.conf",
            "<Pass x>\nHash = ab12\nMethod = SHA256\n</Pass>",
            &["ab12"],
        ),
    ]);
}

#[test]
fn what_only_names_a_secret_is_none() {
    for (name, text) in [
        ("a.php", "'dbpassword' => getenv('NC_DB_PASS'),"),
        (
            "a.rb",
            "registry['key'] = File.read('/etc/gitlab/registry.key')",
        ),
        (
            "a.rb",
            "jwt.secret = Rails.application.credentials.devise_key!",
        ),
        (
            "a.yml",
            "password: ((cf.password))\ntoken: ${ssm:/a/b~true}\nkey: '%env(JWT)%'",
        ),
        (
            "a.env",
            "SMTP_PASS=op://Infra/smtp/password\nKEY_A=__KEY_A__\nX_HASHER=argon2id",
        ),
        ("a.yml", "secretsprovider: awskms://alias/x?region=eu"),
        (
            "a.yml",
            "a:secretArn: arn:aws:secretsmanager:eu:0:secret:shop/db-AbC12x",
        ),
        ("a.ovpn", "askpass /etc/openvpn/kite.pass"),
        ("a.yml", "secrets: [agent_secret]\napiKeys: [partner-key]"),
        (
            "a.yml",
            "secrets:\n  - source: remote_password_v3\n    target: x\n",
        ),
        (
            "a.conf",
            "esp = aes256gcm16-modp2048\nKex sntrup761x25519-sha512@openssh.com,curve25519-sha256",
        ),
        (
            "a.rb",
            "config.reset_password_within = 6.hours\nconfig.password_length = 10..128",
        ),
        ("a.toml", "key = \"private/rsa_sha256_key.pem\""),
        ("a.yml", "r: {expression: '(?:password|token)=(\\S+)'}"),
        (
            "a.xml",
            "<add connectionString=\"Data Source=S;Integrated Security=SSPI\"/>",
        ),
        (
            "sentinel.conf",
            "sentinel known-sentinel s 10.0.0.1 2 309bc35d58c0da44ab70fcb93f0d415565916c0b",
        ),
        (
            "a.yml",
            "url: https://hc.example/166b7dba-3924-48a6-a84f-9eac9498d51c",
        ),
        (
            "a.yml",
            "cloud.id: \"prod:eBgOZGGc0/N1MUbgDx5VJp/JyOcUc9ODhYvM1IRD\"",
        ),
        (
            "db.zone",
            "$TTL 1\nx IN TXT \"p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEArg\"",
        ),
        (
            "named.conf",
            "\"x.\" static-ds 31406 8 2 \"3EE1F2E2B1CB8F960AE669193E583E47D0D50FE061A8D1D4\";",
        ),
        (
            "a.yml",
            "annotations:\n  checksum/secret: 8871c4ec7e167125fcde98c8ea91525d095f69d0ceb6a24c",
        ),
    ] {
        assert!(
            found(name, text).is_empty(),
            "{text}: {:?}",
            found(name, text)
        );
    }
}

#[test]
fn keys_in_json_have_private_members() {
    check(&[(
        "jwks.json",
        "{\"kty\": \"EC\", \"kid\": \"gTTyzZaszZu9vJ00etDHWu3LJKYexvXi9KM3zwFvetw\", \"x\": \"W6EZ0Rjf9YgFeRjQlF7r_AMB0KDZfPJ3ashnmjTvJSE\", \"d\": \"abcd\"}",
        &["abcd"],
    )]);
}

#[test]
fn files_and_groups_of_secrets_need_no_names() {
    check(&[
        (
            "secrets.yaml",
            "wlan: pond water\nhost: h\n",
            &["pond water"],
        ),
        (
            "s.json",
            "{\"kind\": \"Secret\", \"data\": {\"any\": \"cG9uZA==\", \"user\": \"bWU=\"}}",
            &["cG9uZA=="],
        ),
        (
            "a.json",
            "{\"credentials\": {\"solr\": \"pond salt\"}}",
            &["pond salt"],
        ),
        (
            "a.json",
            "{\"Jwt\": {\"Key\": \"pond-water\"}}",
            &["pond-water"],
        ),
        (
            "v.tf",
            "variable \"db_password\" {\n  default = \"pond\"\n  type = string\n}",
            &["pond"],
        ),
        ("a.yml", "cloud.auth: \"writer:pond9\"", &["pond9"]),
        (".env", "NEO4J_AUTH=neo4j/pond9", &["neo4j/pond9"]),
    ]);
}

#[test]
fn public_data_is_no_secret() {
    for (name, text) in [
        ("b.sh", "TOKEN=$(vault kv get -field=token secret/ci)"),
        ("ci.yml", "password: ${{ secrets.GITHUB_TOKEN }}"),
        (
            "go.sum",
            "golang.org/x/crypto v0.14.0 h1:xDmlBUtmEzllPxzI8VMXYLN6nkx+rw13+psF1xdA2W0=",
        ),
        ("SUMS", "54551fd1d8e1c1c8d151abb21963405b *a.yaml"),
        ("a.toml", "token_obtained_at = 2020-03-19T13:01:17Z"),
        ("n.conf", "proxy_pass http://127.0.0.1:8080/;"),
    ] {
        assert!(found(name, text).is_empty(), "{text}");
    }
}

#[test]
fn json_and_yaml_have_keys_above_keys() {
    check(&[
        (
            "a.json",
            "{\"db\": {\"password\": \"ge\\\"h\", \"port\": 5432}, \"token\": 123456}",
            &["ge\\\"h", "123456"],
        ),
        (
            "config.json",
            "{\"auths\": {\"h\": {\"auth\": \"dXNlcjpwYXNzd29yZA==\"}}}",
            &["dXNlcjpwYXNzd29yZA=="],
        ),
        (
            "a.json",
            "{\"env\": [{\"name\": \"DB_PASSWORD\", \"value\": \"geh1\"}, {\"name\": \"HOST\", \"value\": \"h\"}]}",
            &["geh1"],
        ),
        (
            "a.json",
            "{\"db_password\": {\"value\": \"geh1\", \"type\": \"string\"}, \"passwords\": [\"a1\", \"b2\"]}",
            &["geh1", "a1", "b2"],
        ),
        (
            "a.yaml",
            "db:\n  password: geh1 # c\n  host: h\n  port: 5432\n",
            &["geh1"],
        ),
        (
            "a.yaml",
            "password: \"a b\"\nother: 'x'\ntoken: 'y1'",
            &["a b", "y1"],
        ),
        ("a.yaml", "password: |\n  l1\n  l2\nhost: h", &["l1\n  l2"]),
        (
            "a.yaml",
            "env:\n- name: DB_PASSWORD\n  value: geh1\n- name: HOST\n  value: h\n",
            &["geh1"],
        ),
        (
            "a.yaml",
            "environment:\n  - DB_PASSWORD=geh1\n  - HOST=h\n",
            &["geh1"],
        ),
        (
            "a.yaml",
            "passwords:\n  - a1\n  - b2\nhosts:\n  - h\n",
            &["a1", "b2"],
        ),
        (
            ".erlang.cookie",
            "WZQWFNCQDKRTVNGMAJSH",
            &["WZQWFNCQDKRTVNGMAJSH"],
        ),
        (
            "ppp/chap-secrets.bak",
            "alice * hunter2xq *",
            &["alice * hunter2xq *"],
        ),
        (
            "s.yaml",
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: n\ndata:\n  whatever: Z2VoZWlt\n",
            &["Z2VoZWlt"],
        ),
        (
            "d.yaml",
            "env:\n- name: P\n  valueFrom:\n    secretKeyRef:\n      name: db\n      key: user\n",
            &[],
        ),
        (
            "kubeconfig",
            "users:\n- name: a\n  user:\n    client-certificate-data: LS0t\n    client-key-data: LS0tLS1CRUdJTg==\n",
            &["LS0tLS1CRUdJTg=="],
        ),
        ("a.yaml", "db: {password: geh1, port: 1}", &["geh1"]),
        ("a.yaml", "secrets:\n  db:\n    file: ./x.txt\n", &[]),
        (
            "a.toml",
            "[db.password]\nvalue = \"geh1\"\nlength = 8\n[db.host]\nvalue = \"h\"\n",
            &["geh1"],
        ),
    ]);
}

#[test]
fn a_name_may_stand_in_braces_or_behind_its_value() {
    let pairs = [
        "- {name: DB_PASSWORD, value: geh1}\n- {name: HOST, value: h}",
        "env: [{ \"name\": \"SMTP_PASSWORD\", \"value\": \"geh1\" }, {name: HOST, value: h}]",
        "env:\n  - {value: 'geh1', name: DB_PASSWORD}",
        "env:\n  - {\n      value: geh1\n      , name: DB_PASSWORD\n    }\n",
        "a: {b: {key: db.password, value: geh1}, c: [1, x]}",
        "a: {tags: [x], \"value\":\"geh1\",\"name\":\"DB_PASSWORD\"} # c",
        "env:\n-\n  name: HOST\n  value: h\n-\n  name: DB_PASSWORD\n  value: geh1\n",
        "env:\n- # c\n  value: geh1\n  name: DB_PASSWORD\n",
        "env:\n- value: geh1\n  name: DB_PASSWORD\n- value: h\n  name: HOST\n",
        "env:\n  - value: \"geh1\"\n    more:\n      x: y\n    name: DB_PASSWORD\n",
    ];
    for text in pairs {
        check(&[("a.yaml", text, &["geh1"])]);
    }
    check(&[
        (
            "a.json",
            "[{\"ParameterValue\": \"geh1\", \"ParameterKey\": \"DbPassword\"}, {\"Value\": \"geh2\", \"Name\": \"DB_PASSWORD\"}, {\"value\": \"h\", \"name\": \"HOST\"}]",
            &["geh1", "geh2"],
        ),
        (
            "a.json",
            "{\"url\": \"postgres:\\/\\/app:geh1@db\\/x\", \"b\": \"http:\\/\\/h:8080\\/a@b\"}",
            &["geh1"],
        ),
        ("a.yaml", "env:\n- value: x\n- name: DB_PASSWORD\n", &[]),
        ("a.yaml", "a: {name: HOST, value: x}\nb: {value: y}\n", &[]),
    ]);
}

#[test]
fn files_that_are_no_text_are_secrets() {
    let whole = |bytes: &[u8]| recognise("x", bytes, &Overrides::default());
    for bytes in [&b"a\xff"[..], b"a\0b"] {
        assert_eq!(whole(bytes)[0].span, 0..bytes.len());
        assert_eq!(whole(bytes)[0].rule, Rule::File);
    }
    assert_eq!(whole(&vec![b'a'; TEXT_LIMIT_BYTES + 1])[0].rule, Rule::File);
    assert!(whole(b"").is_empty());
}

#[test]
fn the_configuration_has_the_last_word() {
    let overrides = Overrides {
        secret: vec!["SHOP_*".into()],
        plain: vec!["DB_PASSWORD".into()],
        ..Overrides::default()
    };
    let text = "SHOP_CODE=x\nDB_PASSWORD=y\nAPI_TOKEN=z1";
    let found = recognise(".env", text.as_bytes(), &overrides);
    let shown: Vec<_> = found
        .iter()
        .map(|f| (&text[f.span.clone()], f.rule))
        .collect();
    assert_eq!(shown, [("x", Rule::Configured), ("z1", Rule::Key)]);
    // Its values are secrets also where no other key has such ones.
    for value in ["true", "1.2.3"] {
        let text = format!("SHOP_CODE={value}");
        let found = recognise(".env", text.as_bytes(), &overrides);
        assert_eq!(found.len(), 1, "{value}");
    }
    // A column of a table, too, where no other one is secret.
    let text = "name,shop_code\na,x";
    let found = recognise("a.csv", text.as_bytes(), &overrides);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].rule, Rule::Configured);
}

#[test]
fn a_date_of_birth_is_a_password_and_the_version_of_a_package_is_none() {
    check(&[
        (".env", "DB_PASSWORD=24.12.1980", &["24.12.1980"]),
        ("Cargo.toml", "password-hash = \"2.22.34\"", &[]),
        (
            ".env",
            "FORGOT_PASSWORD_SECRET=4f1c0d9b8a7e\nmaxMindLicenseKey=aB3dE5fG7h\nMAX_TOKENS=4096\nREQUIRE_PASSWORD=true",
            &["4f1c0d9b8a7e", "aB3dE5fG7h"],
        ),
    ]);
}

#[test]
fn arguments_in_lists_have_their_options() {
    check(&[
        (
            "a.yaml",
            "command: [\"redis-server\", \"--requirepass\", \"c4che\", \"--port\", \"6379\"]",
            &["c4che"],
        ),
        (
            "a.yaml",
            "command: [\"mysqladmin\",\"-u\",\"root\",\"-pexec1\",\"ping\"]",
            &["exec1"],
        ),
        (
            "a.yaml",
            "args:\n  - --password\n  - line1\n  - --secret-name\n  - db-creds\n",
            &["line1"],
        ),
        (
            "a.json",
            "{\"c\": [\n  \"redis-server\",\n  \"--requirepass\",\n  \"line2\",\n  \"--port\",\n  \"6379\"\n]}",
            &["line2"],
        ),
        (
            "a.xml",
            "<a>\n<argument>--password</argument>\n<argument>line3</argument>\n</a>",
            &["line3"],
        ),
        (
            "x.service",
            "ExecStart=/usr/bin/app -password unit4 -port 80",
            &["unit4"],
        ),
        (
            "x.service",
            "Environment=\"SMTP_PASS=a \\\"b\\\" 1\" \"SMTP_HOST=h\"",
            &["a \\\"b\\\" 1"],
        ),
        ("a.yaml", "basic_auth: [\"bob\", \"pw5\"]", &["pw5"]),
        ("a.yaml", "params: { auth: [public_v2, if_mib] }", &[]),
    ]);
}

#[test]
fn stored_passwords_have_schemes() {
    check(&[
        (
            "users",
            "info@x:{SHA512-CRYPT}$6$ab/c$De.f:5000:5000::/var/vmail/info",
            &["{SHA512-CRYPT}$6$ab/c$De.f"],
        ),
        (
            "users",
            "backup:{PLAIN}Sicher!ng:5000:5000::/var/vmail/backup",
            &["{PLAIN}Sicher!ng"],
        ),
        (
            "users",
            "third:plain7:5000:5000::/var/vmail/third",
            &["plain7"],
        ),
        ("x", "root:x:0:0:root:/root:/bin/sh", &[]),
        (
            "users.ldif",
            "userPassword: {CRYPT}$6$a$bcdefghijk",
            &["{CRYPT}$6$a$bcdefghijk"],
        ),
        (
            "grub.cfg",
            "password_pbkdf2 root grub.pbkdf2.sha512.10000.AB.CD",
            &["grub.pbkdf2.sha512.10000.AB.CD"],
        ),
        (
            "a.yml",
            "- \"x.users=bob:$$apr1$$H6uskkkW$$IgXLP6ewTrSuBkTrqE8wj/\"",
            &["$$apr1$$H6uskkkW$$IgXLP6ewTrSuBkTrqE8wj/"],
        ),
        ("x", "jdbc:oracle:thin:crm/t1ger@//h:1521/X", &["t1ger"]),
        ("x", "DB=scott:tiger@db.example.com:1521/X", &["tiger"]),
        (
            "x",
            "mailto:bob@example.com image: nginx:1.25@sha256:abc",
            &[],
        ),
    ]);
}

#[test]
fn commands_take_passwords_in_many_ways() {
    check(&[
        ("x.sh", "curl --proxy-user bob:pw1 https://x", &["pw1"]),
        (
            "x.sh",
            "skopeo copy --src-creds bob:pw1 docker://a docker://b",
            &["pw1"],
        ),
        ("x.sh", "docker login -u bob -p pw1 reg", &["pw1"]),
        ("x.sh", "docker run -p 3306:3306 mysql", &[]),
        (
            "x.sh",
            "keytool -storepass changeit -alias x",
            &["changeit"],
        ),
        (
            "x.sh",
            "aws configure set aws_secret_access_key pw1",
            &["pw1"],
        ),
        ("x.sh", "chpasswd <<< \"bob:pw1\"", &["pw1"]),
        ("x.sh", "read -r DB_PASSWORD <<< \"pw1\"", &["pw1"]),
        ("x.sh", "htpasswd -b -c /etc/x bob pw1", &["pw1"]),
        ("x.sh", "nmcli dev wifi connect SSID password pw1", &["pw1"]),
        ("x.sh", "ssh-keygen -N 'pw1' -f x", &["pw1"]),
        ("x.sh", "echo -n 'pw1' > /run/secrets/pw", &["pw1"]),
        (
            "x.sh",
            "printf '%s' \"pw1\" | docker secret create x -",
            &["pw1"],
        ),
        ("x.sh", "openssl rsa -passin env:KEYPW -in x", &[]),
        ("x.sh", "PGPASSWORD=pw1 psql -h db", &["pw1"]),
        ("x.sh", "PGPASSWORD=$(cat /etc/pw) psql -h db", &[]),
        (
            "x.exp",
            "spawn ssh x\nexpect \"assword:\"\nsend \"pw1\\r\"\nexpect \"$\"\n",
            &["pw1"],
        ),
    ]);
}

#[test]
fn single_daemons_have_their_places() {
    check(&[
        ("snmpd.conf", "# rwcommunity private 10.0.0.5", &["private"]),
        (
            "exim4.conf",
            "hide mysql_servers = localhost/exim/exim/pw1",
            &["pw1"],
        ),
        (
            "rsyslog.conf",
            "*.* :ommysql:127.0.0.1,Syslog,syslog,pw1",
            &["pw1"],
        ),
        ("tac_plus.conf", "login = cleartext pw1", &["pw1"]),
        ("authkeys", "auth 1\n1 sha1 pw1", &["pw1"]),
        ("davfs2/secrets", "/mnt/dav bob pw1", &["pw1"]),
        (
            "ipsec.secrets",
            ": RSA vpn.pem \"pw1\"\n: PIN %prompt\n",
            &["pw1"],
        ),
        (
            "resource.cfg",
            "$USER5$=nagios1\n$USER1$=/usr/lib/nagios",
            &["nagios1"],
        ),
        (
            "haproxy.cfg",
            "deny unless { req.hdr(X-Api-Key) -m str pw1 }",
            &["pw1"],
        ),
        (
            "x.rsc",
            "/snmp community set [ find default=yes ] name=pw1",
            &["pw1"],
        ),
        ("monit.rc", "allow bob:pw1\nallow 10.0.0.0/8", &["pw1"]),
        (
            "rabbitmq.config",
            "{default_pass, <<\"pw1\">>}, {password, \"pw2\"}",
            &["pw1", "pw2"],
        ),
        (
            "x.ppk",
            "Public-Lines: 1\nAAAA\nPrivate-Lines: 1\nBBBB\nx",
            &["BBBB"],
        ),
        (
            "a.json",
            "{\"network_key\": [1, 3, 5, 7, 9, 11, 13, 15]}",
            &["[1, 3, 5, 7, 9, 11, 13, 15]"],
        ),
        ("a.json", "{\"auth\": \"Ym9iOnB3\"}", &["Ym9iOnB3"]),
        (
            "a.json",
            "{\"type\": \"password\", \"value\": \"pw1\"}",
            &["pw1"],
        ),
    ]);
}

#[test]
fn statements_of_sql_have_their_texts() {
    check(&[
        ("x.sql", "CREATE ROLE bob PASSWORD $$pw1$$;", &["pw1"]),
        ("x.sql", "CREATE USER bob IDENTIFIED BY pw1;", &["pw1"]),
        (
            "x.sh",
            "psql -c \"ALTER ROLE bob PASSWORD 'pw1'\"",
            &["pw1"],
        ),
        (
            "x.sql",
            "SELECT pgp_sym_encrypt(data, 'pw1') FROM t;",
            &["pw1"],
        ),
        (
            "x.sql",
            "COPY u (id, password_hash, mail) FROM stdin;\n1\tpw1\tb@x\n2\t\\N\tc@x\n\\.\nx\ty\tz\n",
            &["pw1"],
        ),
        (
            "x.sql",
            "CREATE TABLE u (password varchar(255) NOT NULL);",
            &[],
        ),
        ("x.sql", "ALTER ROLE bob WITH PASSWORD\n  'pw1';", &["pw1"]),
        (
            "x.sql",
            "UPDATE u SET h = public.crypt('pw1', gen_salt('bf')), b = decrypt('x', k);",
            &["pw1", "bf"],
        ),
    ]);
}

#[test]
fn sentences_and_tables_tell_passwords() {
    check(&[
        ("x.md", "The password is prose1.", &["prose1"]),
        ("x.md", "Log in with password `tick!e`.", &["tick!e"]),
        (
            "x.md",
            "| host | password |\n|------|----------|\n| db1 | `md1` |\n| db2 | - |\n",
            &["md1"],
        ),
        ("x.md", "Set `password` to what you like.", &[]),
    ]);
}

#[test]
fn settings_and_references_are_no_secrets() {
    check(&[
        (
            "x.ini",
            "password_expiration_warning = 14\npwdPolicySubentry: cn=svc,ou=policies,dc=x\npasswordeval = pass show mail/x\n\
             credential_process = /usr/bin/aws-vault exec prod\nauth_ldap_user_attr_map = first_name=givenName\n\
             release = 232f1b8aaf5fad4e05d311f04badbfb8e9323fba\nvolume = vol-0a1b2c3d4e5f67890\ntls_key = tls.key\n\
             stripe_key = pk_test_51EXAMPLEiMPMcImI4JfAPXrSLU0FhEQB\npassword_min_life = 0\n",
            &[],
        ),
        (
            "x.properties",
            "a.password=${file:/etc/x.properties:ssl.key}\nb.password=${?PW}\nc.password=$db_password\nd.password=/run/secrets/x\ne.password=@db.password@\n\
             f.password=${DB_PASSWORD:geheim1}\n",
            &["${DB_PASSWORD:geheim1}"],
        ),
        (
            "x.tf",
            "password = random_password.db.result\ntoken = sensitive(var.token)\n",
            &[],
        ),
        (
            "x.yaml",
            "customUsersSecret: pgpool-custom-users\nx.io/auth-secret: basic-auth\nclientSecret: plain-client-secret\n",
            &["plain-client-secret"],
        ),
        ("x.yaml", "REDIS_PW: ${REDIS_PW:?set REDIS_PW}\n", &[]),
        (
            "x.yaml",
            "a_password: \"{{ lookup('x', 'secret=kv/data:become') }}\"\nb_password: \"{{ lookup('env','X') | default('def1') }}\"\n",
            &["def1"],
        ),
        (
            "x.yaml",
            "kind: Secret\ndata:\n  sslmode: dmVyaWZ5LWZ1bGw=\n  port: NTQzMg==\n  x: c3VwZXI=\n",
            &["c3VwZXI="],
        ),
        (
            "x.py",
            "A_PASSWORD = os.getenv(\"SMTP_PW\", \"base1\")\nB_PASSWORD = env.str(\"X\")\n",
            &["base1"],
        ),
        (
            "x.php",
            "$password = getenv('X') ?: 'fall1';\n$password = $_ENV['X'];\n",
            &["fall1"],
        ),
        (
            "x.pp",
            "password => Sensitive('pw1'), a_password => hashed('bob', 'pw2')",
            &["pw1", "pw2"],
        ),
        (
            "smb.conf",
            "passwd chat = *Enter\\snew\\s*\\spassword:* %n\\n",
            &[],
        ),
        (
            "x.sh",
            "gpg --recv-keys D8692123C4065DEA5E0F3AB5249B39D24F25E3B6",
            &[],
        ),
        (
            "x.properties",
            "password=\\\n   cont1\nhost=h\n",
            &["cont1"],
        ),
        (
            "x.json",
            "{\"e\": \"{\\\"DB_PASSWORD\\\":\\\"nest1\\\",\\\"DB_HOST\\\":\\\"db\\\"}\"}",
            &["nest1"],
        ),
        (
            "x.h",
            "#define WIFI_PASSWORD \"pw1\"\n#define KEY_SIZE 32\n",
            &["pw1"],
        ),
    ]);
}

#[test]
fn the_work_grows_with_the_text_alone() {
    for part in [
        "password=\"",
        "password='\\\"",
        "{\"a\":",
        "- - - ",
        "a: |\n",
        "key=\"token\" ",
        "://a:b",
        "''",
        "-----BEGIN X-----",
        "name: \"",
        "p=\"\"\"",
        "user a >",
        "x.y.",
        "\\'",
        "a=/",
        "name=\"password\" ",
        "hooks.slack.com/",
        "createUser SHA '",
        "a!",
        "secrets: [",
        "<a b='",
        "insert into t (password) values ('a",
        "echo '| chpasswd ",
        "secret 7 ",
        "x=[[",
        "curl '\" -",
        "{SSHA}a",
        "a:b@c:12 ",
        "- --password\n",
        "chpasswd <<< ",
        "password `a` ",
        "password '",
        "|a|\n|--|\n",
        "hdr(token) ",
        "{{ lookup(",
        "token=${a ",
        "token=f('",
        "password=\\\n",
        "auth=[a,",
        "token=[1,",
        "a: {b: '",
        "a: {\"\\",
        "{value: x, ",
        ":\\/\\/a:b",
    ] {
        for name in ["a.json", "a.yaml", ".pgpass"] {
            let text = part.repeat((4 << 10) / part.len());
            // Its own time: the machine may be busy with other tests.
            let time = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).tv_sec;
            let started = time();
            recognise(name, text.as_bytes(), &Overrides::default());
            let took = time() - started;
            assert!(took < 5, "{part:?} as {name} took {took} s");
        }
    }
}

#[test]
fn an_end_that_is_not_there_is_looked_for_once() {
    let text = format!("</a>{}", "<![CDATA[".repeat(120_000));
    let overrides = Overrides::default();
    let mut finds = Finds {
        text: &text,
        overrides: &overrides,
        found: Vec::new(),
        is_jwk: false,
        is_of_secrets: false,
    };
    let time = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).tv_sec;
    let started = time();
    xml::scan(&mut finds);
    assert!(time() - started < 10);
}

#[test]
fn a_long_key_is_judged_in_short_time() {
    let text = format!("{{\"{}\":[{}0]}}", "a".repeat(20_000), "0,".repeat(10_000));
    // Its own time: the machine may be busy with other tests.
    let time = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).tv_sec;
    let started = time();
    recognise("a.json", text.as_bytes(), &Overrides::default());
    assert!(time() - started < 20);
}

proptest! {
    #[test]
    fn any_text_has_spans_in_order(
        text in "([a-zA-Z_]{0,9}(password|token|key)?[=:'\"{}\\[\\], \\n\\t#|>@/\\\\$<.é-]{0,4}){0,40}",
        name in prop::sample::select(vec![".env", "a.json", "a.yaml", "users.acl", ".pgpass", "x", "x.conf", "userlist.txt", ".netrc", "passwd", "a.keys", "secrets.ini"]),
    ) {
        let mut end = 0;
        for one in recognise(name, text.as_bytes(), &Overrides::default()) {
            prop_assert!(one.span.start >= end && one.span.end <= text.len() && !one.span.is_empty());
            prop_assert!(text.is_char_boundary(one.span.start) && text.is_char_boundary(one.span.end));
            end = one.span.end;
        }
    }

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300), ascii in any::<bool>()) {
        let bytes: Vec<u8> = bytes.into_iter().map(|b| if ascii { b & 0x7f } else { b }).collect();
        for name in [".env", "a.json", "a.yaml", "redis.conf", ".pgpass", "x"] {
            recognise(name, &bytes, &Overrides::default());
        }
    }
}

/// A password alone in a file has no key that would say what it is.
#[test]
fn a_file_that_is_nothing_but_a_password_is_one() {
    let pass: &[&str] = &["Summer11!x"];
    for name in [
        "/etc/pitr/cache.pass",
        "secrets/db_password",
        "/run/secrets/app",
        "/etc/app/token",
        ".vault_pass",
        ".vault-password-file",
        "luks.key",
        "db.password",
        "smtp.passwd",
        "password.txt",
        "redis-password",
        "db_pwd",
        "api-token.bak",
        "PASSWORD",
    ] {
        check(&[
            (name, "Summer11!x", pass),
            (name, "\n  Summer11!x \r\n\n", pass),
        ]);
    }
    check(&[
        ("token", "${TOKEN}", &[]),
        ("db_password", "/run/secrets/db", &[]),
        ("motd", "Summer11!x", &[]),
        ("hostname", "db1", &[]),
        ("password_policy", "strict", &[]),
        ("host.pub", "Summer11!x", &[]),
        ("password.md", "how to choose one", &[]),
        ("tokens.json", "[]", &[]),
        ("token", "first line\nsecond line", &[]),
    ]);
    let all = |overrides: &Overrides| recognise("etc/token", b"Summer11!x", overrides).len();
    let plain = vec!["token".to_owned()];
    assert_eq!(all(&Overrides::default()), 1);
    assert_eq!(
        all(&Overrides {
            plain: plain.clone(),
            ..Overrides::default()
        }),
        0
    );
    // The configuration names it as the password of a server.
    let files = vec!["/etc/cache".to_owned()];
    let named = Overrides {
        files,
        ..Overrides::default()
    };
    let found = recognise("etc/cache", b"Summer11!x\n", &named);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].rule, Rule::File);
}

/// A variable before a command in quotes: a URL among the arguments makes no URL of the value.
#[test]
fn variables_before_a_command_are_secrets() {
    check(&[
        (
            "postgresql.conf",
            "archive_command = 'API_TOKEN=minio-secret-9 curl -T %p https://h/%f'",
            &["minio-secret-9"],
        ),
        (
            "postgresql.conf",
            "archive_command = 'AWS_SECRET_ACCESS_KEY=minio-secret-9 aws s3 cp %p s3://b/%f'",
            &["minio-secret-9"],
        ),
        (
            "postgresql.conf",
            "restore_command = 'WALG_LIBSODIUM_KEY=minio-secret-9 wal-g wal-fetch %f %p --s3 s3://b'",
            &["minio-secret-9"],
        ),
        (
            "app.service",
            "[Service]\nExecStart=/bin/sh -c 'API_TOKEN=minio-secret-9 curl https://h/x'",
            &["minio-secret-9"],
        ),
        (
            "compose.conf",
            "set 'API_TOKEN=Two Words https://h/x'",
            &["Two Words https://h/x"],
        ),
        (
            "app.service",
            "Environment='API_TOKEN=correct horse battery'",
            &["correct horse battery"],
        ),
        (
            "patroni.yml",
            "restore_command: 'API_TOKEN=minio-secret-9 curl -o %p https://h/%f'",
            &["minio-secret-9"],
        ),
        (
            "app.service",
            "Environment=\"RESTIC_PASSWORD=correct horse - battery staple\"",
            &["correct horse - battery staple"],
        ),
        (
            "app.service",
            "Environment='BORG_PASSPHRASE=tulip garden -window lamp'",
            &["tulip garden -window lamp"],
        ),
        (
            "app.service",
            "Environment=\"DB_PASSWORD=tea pot http://x\"",
            &["tea pot http://x"],
        ),
        (
            "app.service",
            "Environment=\"DB_PASSWORD=one TWO=three\"",
            &["one TWO=three"],
        ),
        (
            "app.service",
            "ExecStart=/usr/bin/docker run -e 'ARCHIVE_PASSPHRASE=seven wolves - purple sky'",
            &["seven wolves - purple sky"],
        ),
        (
            "x.sh",
            "docker run -e 'ARCHIVE_PASSPHRASE=seven wolves - purple sky'",
            &["seven wolves - purple sky"],
        ),
        (
            "x.sh",
            "docker run -e \"ARCHIVE_PASSWORD=ninety green %feet apart\"",
            &["ninety green %feet apart"],
        ),
        (
            "app.conf",
            "DB_PASSWORD=seven wolves - purple sky",
            &["seven wolves - purple sky"],
        ),
        (
            "env.json",
            "{\"Env\": [\"RESTIC_PASSWORD=correct horse - battery staple\", \"BORG_PASSPHRASE=seven wolves -purple sky\", \"DB_PASSWORD=one TWO=three\"]}",
            &[
                "correct horse - battery staple",
                "seven wolves -purple sky",
                "one TWO=three",
            ],
        ),
        (
            "app.ini",
            "DB_PASSWORD=tea pot http://x",
            &["tea pot http://x"],
        ),
    ]);
}

/// The default set of `pitr config` holds such files: a path is no secret, and Base64 with slashes is one.
#[test]
fn paths_of_packages_are_no_secrets() {
    check(&[
        (
            "/etc/cron.d/e2scrub_all",
            "30 3 * * 0 root test -e /run/systemd/system || SERVICE_MODE=1 /usr/lib/x86_64-linux-gnu/e2fsprogs/e2scrub_all_cron\n10 3 * * * root test -e /run/systemd/system || SERVICE_MODE=1 /sbin/e2scrub_all -A -r\n",
            &[],
        ),
        (
            "x",
            "put /K7MDENG/bPxRfiCYwJalrXUtnFEMIEXAMPLEKEY there",
            &["/K7MDENG/bPxRfiCYwJalrXUtnFEMIEXAMPLEKEY"],
        ),
        (
            "x",
            "use /api/v1/hooks/e4ve6bzclipsnwsgffneqfdj there",
            &["/api/v1/hooks/e4ve6bzclipsnwsgffneqfdj"],
        ),
        (
            "x",
            "use /ical/zuh63zwy5orvqmij there",
            &["/ical/zuh63zwy5orvqmij"],
        ),
        (
            "x",
            "use /srv/e2fsprogs/f7k2m9x4q1w8e5r3t6y0u2i7 there",
            &["/srv/e2fsprogs/f7k2m9x4q1w8e5r3t6y0u2i7"],
        ),
    ]);
}
