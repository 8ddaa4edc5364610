"""The Lua scripts of queues in Redis, and the names that other scripts have of them.

queue:<id>       a list: each message that waits, as JSON that begins with its id; the next one first
queues           a set: the ids of the sessions in which messages wait
"""

from session_core.data.message_queue import MAX_QUEUED

QUEUE_NAMES = """
local queues = prefix .. 'queues'
local waiting = string.match(session, ':session:(.*)$') or ''
local queue = prefix .. 'queue:' .. waiting
local function queued(id)
    for place, entry in ipairs(redis.call('LRANGE', queue, 0, -1)) do
        local head = '{"id":"' .. id .. '"'
        if string.sub(entry, 1, #head) == head then return place, entry end
    end
end
local function unqueue(entry)
    redis.call('LREM', queue, 1, entry)
    if redis.call('EXISTS', queue) == 0 then redis.call('SREM', queues, waiting) end
end
"""

QUEUE_BODIES = {
    # Each of the next three does nothing where it runs a second time.
    "queue": f"""
local id, entry, first = unpack(ARGV)
if redis.call('EXISTS', session) == 0 then return 'missing' end
local place = queued(id)
if place then return place end
if redis.call('LLEN', queue) >= {MAX_QUEUED} then return 'full' end
redis.call('SADD', queues, waiting)
hold(waiting, entry)
if first == '1' then
    redis.call('LPUSH', queue, entry)
    return 1
end
return redis.call('RPUSH', queue, entry)
""",
    "unqueue": """
if redis.call('EXISTS', session) == 0 then return 'missing' end
local place, entry = queued(ARGV[1])
if place then unqueue(entry) end
return place
""",
    "queued": """
if redis.call('EXISTS', session) == 0 then return 'missing' end
return redis.call('LRANGE', queue, 0, -1)
""",
    "queues": """
return redis.call('SMEMBERS', queues)
""",
}
