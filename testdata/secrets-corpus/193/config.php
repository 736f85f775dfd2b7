<?php
/** Datenbank */
define( 'DB_NAME', 'events_2023' );
define( 'DB_USER', 'keycloak' );
define( 'DB_PASSWORD', 'w4l fisch & co' );
define( 'DB_HOST', '127.0.0.1:3307' );
define( 'AUTH_KEY',        'zne8I6adj0xlviI3KumrayPkJSIc5a{|#zOwNvhWEVC_JfYS8p_Il&%+s5SDd-' );
define( 'SECURE_AUTH_KEY', 'eUsE0vmspr33WADQP7 ;?*y9qElxhmoPYwaNHfnlPQRMCL6mzyMs]}' );
$table_prefix = 'wp_';
define( 'FTP_PASS', 'oc3w4ISYGMvRc85uR6L' );
$CONFIG = array( 'instanceid' => 'q8pnJfYv1Jrf', 'passwordsalt' => 'xFR5UADsZzedcxsP6LfeysLBMu3HcK', 'version' => '10.29.17', 'trusted_domains' => ['cloud.dc1.tandem.internal'],
  'logdateformat' => 'Y-m-d H:i:s', 'default_locale' => 'de_DE.UTF-8', 'mail_smtpauthtype' => 'LOGIN',
  'mail_smtppassword' => "pgM6qjlJPuTfDqBRBo", 'overwrite.cli.url' => 'https://docs.dc1.tandem.internal/v1' );
