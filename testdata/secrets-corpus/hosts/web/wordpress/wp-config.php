<?php
define( 'DB_NAME', 'wp_blog' );
define( 'DB_USER', 'wp_blog' );
define( 'DB_PASSWORD', 'u(8Kd\'s_tR0mboN' );
define( 'DB_HOST', 'localhost:/run/mysqld/mysqld.sock' );
define( 'DB_CHARSET', 'utf8mb4' );

define('AUTH_KEY',         'f+|J(8z_Q^v/Kp2~xW1m#R}d5Lh0T]s;gYb');
define('NONCE_SALT',       '1w:)EoN{5uXrG*V7!a9t-D,cM`k6ZqP<b3i');
$table_prefix = 'wp_';
define( 'WP_DEBUG', false );
define( 'WP_MEMORY_LIMIT', '256M' );
define( 'FS_METHOD', 'direct' );
define( 'ABSPATH', __DIR__ . '/' );
require_once ABSPATH . 'wp-settings.php';
