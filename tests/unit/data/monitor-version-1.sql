PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE event (instance TEXT NOT NULL, at REAL NOT NULL, what TEXT NOT NULL, reason TEXT NOT NULL,
    count INTEGER NOT NULL);
INSERT INTO "event" VALUES('a',1789999500.0,'signal','systemd: signal; the main process was ended by signal 9',1);
INSERT INTO "event" VALUES('a',1789999511.0,'restart','',1);
CREATE TABLE ledger (instance TEXT PRIMARY KEY, content TEXT NOT NULL);
INSERT INTO "ledger" VALUES('a','{"restarts":1,"failures":{"signal":1},"last_failure":{"kind":"signal","reason":"systemd: signal; the main process was ended by signal 9","at":1789999500.0},"startup_seconds":8.0,"exit_code":137,"cpu":{"settled":12.5,"last":0.0},"oom_kills":{"settled":0.0,"last":0.0},"peak_bytes":null,"boot":1,"invocation":"b","seen_restarts":1,"ended":[],"mended":{},"started":true}');
INSERT INTO "ledger" VALUES('b','{"restarts":2,"failures":{},"last_failure":null,"startup_seconds":null,"exit_code":null,"cpu":{"settled":0.0,"last":0.0},"oom_kills":{"settled":0.0,"last":0.0},"peak_bytes":null,"boot":0,"invocation":"","seen_restarts":0,"ended":[],"mended":{},"started":false}');
CREATE TABLE peak (instance TEXT NOT NULL, at REAL NOT NULL, bytes INTEGER NOT NULL, limit_bytes INTEGER,
    PRIMARY KEY (instance, at));
INSERT INTO "peak" VALUES('a',1789948800.0,6000000000,8000000000);
CREATE TABLE period (instance TEXT NOT NULL, at REAL NOT NULL, until REAL NOT NULL, up INTEGER NOT NULL,
    PRIMARY KEY (instance, at));
INSERT INTO "period" VALUES('a',1789999000.0,1789999500.0,1);
INSERT INTO "period" VALUES('a',1789999500.0,1789999510.0,0);
INSERT INTO "period" VALUES('a',1789999510.0,1790000000.0,1);
CREATE TABLE start (instance TEXT NOT NULL, at REAL NOT NULL, seconds REAL NOT NULL);
INSERT INTO "start" VALUES('a',1789999008.0,8.0);
INSERT INTO "start" VALUES('a',1789999510.0,8.0);
CREATE INDEX event_at ON event (at);
CREATE INDEX start_at ON start (at);
CREATE INDEX period_until ON period (until);
COMMIT;
