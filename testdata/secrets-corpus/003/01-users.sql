-- create roles
CREATE ROLE app LOGIN PASSWORD 'pw mit leer 7';
GRANT ALL ON DATABASE umami TO "app";
-- mysql: CREATE USER 'sync'@'%' IDENTIFIED BY 'Pu3nt3_374';
CREATE TABLE sessions (id uuid PRIMARY KEY, token_hash bytea, password_changed_at timestamptz);
INSERT INTO settings VALUES ('password_max_age', '50'), ('theme', '#dbada5'), ('instance', '2565afc5-0ce5-4506-8d5a-2398df689c3d');
CREATE USER MAPPING FOR billing SERVER remote OPTIONS (user 'app', password 'osx29WujczU9YGP6Sx');
