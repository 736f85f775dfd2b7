-- roles of the analytics cluster
SET password_encryption = 'scram-sha-256';
CREATE ROLE analytics LOGIN PASSWORD 'An4lyse''n' VALID UNTIL '2027-01-01';
CREATE ROLE bi_reader LOGIN ENCRYPTED PASSWORD 'SCRAM-SHA-256$4096:hpI648ZT7OTAyBW1UewDsw==$7kpWRLgXe/fVznw4umfUm7FyZwOhHWX1gqxSRTrmUqA=:2oS760CmtIWsqMqB1/qm0WSGSWpRKt7y3wnS1UPNchg=';
ALTER ROLE analytics SET search_path = analytics, public;
ALTER USER postgres WITH PASSWORD NULL;
CREATE EXTENSION IF NOT EXISTS postgres_fdw;
CREATE SERVER crm FOREIGN DATA WRAPPER postgres_fdw
  OPTIONS (host 'pg01.example.com', port '5432', dbname 'crm');
CREATE USER MAPPING FOR analytics SERVER crm
  OPTIONS (user 'crm_fdw', password 'fdw.Bruecke');
CREATE TABLE password_reset (token_hash bytea NOT NULL, expires timestamptz DEFAULT now() + interval '2 hours');
