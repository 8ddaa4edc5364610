"""The Lua scripts of the Redis store: each change is one script, and so atomic.

Keys begin with `session_server:`, those of a user with `session_server@<name>:`

    session:<id>     a hash: times, settings and note, and the token of the caller that has locked the session;
                     `replaced` where a question has replaced messages
    messages:<id>    a list: each message as JSON
    sessions         a sorted set: the ids, in the order of the list
    lease:<id>       who has locked the session; it expires unless it is renewed
    events:<token>   a stream: what a turn has published, until a minute after its end; where the turn's process is
                     gone, until somebody has stored what it has left

A caller that locks a session writes a token of its own into the hash, and each later change compares it. A caller
whose lease has run out, and whose session another one has locked, can change nothing any more, whatever its clock
says.
"""

from __future__ import annotations

LEASE_MILLISECONDS = 5000  # after which a lock for a turn is free whose process does not renew it
SHORT_LEASE_MILLISECONDS = 2000  # the same for a short lock, which is not renewed
KEEP_MILLISECONDS = 60_000  # for which a turn's events are kept after its end
ENDED_ELSEWHERE = 10**12  # number of an entry that another process has added in place of the turn's own
DURABLE = ("create", "write", "delete")  # scripts that wait for replicas

# All scripts begin with this. A session exists if its hash does.
_NAMES = """
local session, messages, lease, list = unpack(KEYS)
local events = '@PREFIX@events:'
local function touch(id)
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local newest = redis.call('ZRANGE', list, 0, 0, 'WITHSCORES')[2]
    if newest and now <= -newest then now = 1 - newest end
    redis.call('ZADD', list, string.format('%.0f', -now), id)
end
local function top(key)
    local entry = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    if entry then return tonumber(string.match(entry[1], '%d+')), entry[2][3] end
end
"""

_BODIES = {
    "create": """
local id, count = unpack(ARGV, 1, 2)
if redis.call('HEXISTS', session, 'created_at') == 1 then return 'exists' end
redis.call('HSET', session, unpack(ARGV, 3, 2 + count))
for line = 3 + count, #ARGV do redis.call('RPUSH', messages, ARGV[line]) end
touch(id)
""",
    "read": """
local first, last = unpack(ARGV)
if redis.call('EXISTS', session) == 0 then return 'missing' end
local fields = redis.call('HMGET', session, unpack(ARGV, 3))
return {fields, redis.call('LRANGE', messages, first, last), redis.call('LLEN', messages)}
""",
    "page": """
local after, limit = unpack(ARGV)
local first = 0
if after ~= '' then
    first = redis.call('ZRANK', list, after)
    if not first then return 'missing' end
    first = first + 1
end
return redis.call('ZRANGE', list, first, limit == '' and -1 or first + limit)
""",
    "older": """
local before, skip, limit = unpack(ARGV)
return redis.call('ZRANGE', list, '+inf', '-' .. before, 'BYSCORE', 'REV', 'LIMIT', skip, limit)
""",
    "newer": """
return redis.call('ZRANGE', list, '-inf', '-' .. ARGV[1], 'BYSCORE')
""",
    "score": """
if redis.call('EXISTS', session) == 0 then return 'missing' end
return redis.call('ZSCORE', list, ARGV[1])
""",
    # The first command needs no memory, so that Redis does not refuse the script where memory is short, and sessions
    # can be deleted then.
    "lock": """
local token, lessee, milliseconds = unpack(ARGV)
if redis.call('EXISTS', session) == 0 then return 'missing' end
local holder = redis.call('GET', lease)
if holder and holder ~= lessee then return 'locked' end
redis.call('HDEL', session, 'asked', 'written')
redis.call('HSET', session, 'token', token)
redis.call('SET', lease, lessee, 'PX', milliseconds)
""",
    "holder": """
if redis.call('EXISTS', session) == 0 then return 'missing' end
local told = redis.pcall('HGET', session, 'told')
if type(told) == 'table' then told = false end
if told and redis.call('EXISTS', events .. told) == 0 then told = false end
return {redis.call('GET', lease), told}
""",
    # Changes are numbered, so that one that arrives twice, or after the next one, does nothing. `count` is how many
    # messages there should be. One more is the rest of a try that was reported as failed.
    "write": """
local token, number, count, line, id = unpack(ARGV, 1, 5)
if redis.call('HGET', session, 'token') ~= token then return 'lost' end
if tonumber(number) <= tonumber(redis.call('HGET', session, 'written') or 0) then return end
if line ~= '' then
    local found = redis.call('LLEN', messages)
    if found > tonumber(count) then redis.call('LTRIM', messages, -found, count - found - 1) end
    redis.call('RPUSH', messages, line)
end
redis.call('HSET', session, 'written', number, unpack(ARGV, 6))
if id ~= '' then touch(id) end
""",
    "delete": """
local token, id = unpack(ARGV)
if redis.call('EXISTS', session) == 1 and redis.call('HGET', session, 'token') ~= token then return 'lost' end
local published = redis.pcall('HGET', session, 'told')
if type(published) == 'string' then redis.call('UNLINK', events .. published) end
redis.call('UNLINK', session, messages)
redis.call('ZREM', list, id)
""",
    "release": f"""
local token, lessee, count = unpack(ARGV)
if redis.call('GET', lease) == lessee then redis.call('DEL', lease) end
redis.call('PEXPIRE', events .. token, {KEEP_MILLISECONDS})
if redis.call('HGET', session, 'token') == token then
    local found = redis.call('LLEN', messages)
    if count ~= '' and found > tonumber(count) then redis.call('LTRIM', messages, -found, count - found - 1) end
    redis.call('HDEL', session, 'token')
end
""",
    "publish_first": f"""
local token, line = unpack(ARGV)
local before = redis.call('HGET', session, 'told')
if redis.call('HGET', session, 'token') ~= token then return 'lost' end
if before == token then return end
redis.call('XADD', events .. token, '1-0', 'lines', line)
redis.call('HSET', session, 'told', token)
if before then redis.call('PEXPIRE', events .. before, {LEASE_MILLISECONDS}) end
""",
    # For each turn of a process: adds to its stream what it has published, checks that it still has its session, and
    # renews its lease. An entry's id is the number of its first line, so that one that is sent again does nothing.
    "publish": f"""
local replies = {{}}
for turn = 0, #ARGV / 5 - 1 do
    local session, lease = KEYS[2 * turn + 1], KEYS[2 * turn + 2]
    local token, held, first, lines, last = unpack(ARGV, 5 * turn + 1, 5 * turn + 5)
    local reply, stream = 'ok', events .. token
    local owner = redis.pcall('HMGET', session, 'token', 'asked')
    if owner.err then owner = {{}} end
    if lines ~= '' then
        local newest, over = top(stream)
        if not newest then
            reply = 'gone'
        elseif over and newest ~= tonumber(first) then
            reply = 'over'
        elseif newest < tonumber(first) then
            local fields = {{'lines', lines}}
            if last == '1' then fields = {{'lines', lines, 'last', '1'}} end
            if redis.pcall('XADD', stream, first .. '-0', unpack(fields)).err then reply = 'again' end
        end
    end
    if last == '1' then redis.call('PEXPIRE', stream, {KEEP_MILLISECONDS}) end
    if held == '1' and owner[1] ~= token then
        reply = 'lost'
    elseif held == '1' then
        local left = redis.call('PTTL', lease)
        if left < 0 then
            redis.pcall('SET', lease, 'turn ' .. token, 'PX', {LEASE_MILLISECONDS})
        elseif left < {LEASE_MILLISECONDS} * 0.7 then
            redis.call('PEXPIRE', lease, {LEASE_MILLISECONDS})
        end
        if owner[2] == token and reply == 'ok' then reply = 'asked' end
    end
    replies[turn + 1] = reply
end
return replies
""",
    # Once a caller has been told that a turn is dead, the turn stores nothing more.
    "state": """
local token = unpack(ARGV)
if redis.call('EXISTS', events .. token) == 0 then return 'gone' end
if redis.call('GET', lease) == 'turn ' .. token then return 'held' end
if redis.call('HGET', session, 'token') ~= token then return 'left' end
redis.call('HDEL', session, 'token')
return 'dead'
""",
    "end": f"""
local token, id, lines = unpack(ARGV)
local newest, over = top(events .. token)
if newest and not over then
    redis.call('XADD', events .. token, id .. '-0', 'lines', lines, 'last', '1')
    redis.call('PEXPIRE', events .. token, {KEEP_MILLISECONDS})
end
""",
    "ask": """
local token = unpack(ARGV)
if redis.call('HGET', session, 'token') == token then redis.call('HSET', session, 'asked', token) end
""",
}


def scripts(prefix: str) -> dict[str, str]:
    """The scripts by name, for keys that begin with this prefix."""
    return {name: (_NAMES + body).replace("@PREFIX@", prefix) for name, body in _BODIES.items()}
