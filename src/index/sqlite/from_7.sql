-- From schema 7 to schema 8: the table of the eviction order has its name.

DROP INDEX turn_by_need;
ALTER TABLE turn RENAME TO eviction_order;
CREATE INDEX eviction_order_by_need ON eviction_order (needed_at);
