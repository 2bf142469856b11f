-- One of a hundred orders changes, and its event is written in the same transaction, about ten times a second.
WITH changed AS (
    INSERT INTO orders AS o (id, status)
    VALUES (1 + floor(random() * 100)::bigint, 'placed')
    ON CONFLICT (id) DO UPDATE SET
        status = CASE o.status WHEN 'placed' THEN 'paid' WHEN 'paid' THEN 'shipped' ELSE 'placed' END,
        changed_at = now()
    RETURNING o.*
)
SELECT statecast.publish('order', id::text, 'order.' || status, to_json(changed)) FROM changed \watch 0.1
