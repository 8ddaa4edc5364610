// assistant-ui over `useChat`, from its own parts. The address has the server, and the session behind the #.

import { useChat } from '@ai-sdk/react'
import {
  ActionBarPrimitive, AssistantRuntimeProvider, BranchPickerPrimitive, ComposerPrimitive, MessagePrimitive,
  ThreadPrimitive, useAssistantTool,
} from '@assistant-ui/react'
import { AssistantChatTransport, useAISDKRuntime } from '@assistant-ui/react-ai-sdk'
import { lastAssistantMessageIsCompleteWithApprovalResponses, lastAssistantMessageIsCompleteWithToolCalls } from 'ai'
import { useMemo } from 'react'
import { createRoot } from 'react-dom/client'

const server = new URLSearchParams(location.search).get('server')
const id = location.hash.slice(1)
const stored = await fetch(`${server}/sessions/${id}`, { headers: { Accept: 'application/vnd.ai-sdk.ui-messages+json' } })
const history = await stored.json()

const isAnswered = (state) =>
  lastAssistantMessageIsCompleteWithToolCalls(state) || lastAssistantMessageIsCompleteWithApprovalResponses(state)

function Provider() {
  const transport = useMemo(() => new AssistantChatTransport({
    api: `${server}/ui/chat`,
    // The thread's own id is no session's.
    prepareSendMessagesRequest: ({ body, messages, trigger, messageId }) => ({
      body: { ...body, id, messages, trigger, messageId },
    }),
  }), [])
  const chat = useChat({ id, messages: history, transport, sendAutomaticallyWhen: isAnswered })
  const runtime = useAISDKRuntime(chat)
  transport.setRuntime(runtime)
  return (
    <AssistantRuntimeProvider runtime={runtime}>
      <Weather />
      <ThreadPrimitive.Root>
        <ThreadPrimitive.Messages components={{ UserMessage, AssistantMessage, EditComposer }} />
        <ComposerPrimitive.Root className="composer">
          <ComposerPrimitive.Input />
          <ComposerPrimitive.Send>Send</ComposerPrimitive.Send>
        </ComposerPrimitive.Root>
        <output>{chat.status}</output>
        {chat.error && <p role="alert">{chat.error.message}</p>}
      </ThreadPrimitive.Root>
    </AssistantRuntimeProvider>
  )
}

function Weather() {
  useAssistantTool({
    toolName: 'weather',
    description: 'The weather in a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } } },
    execute: async ({ city }) => ({ sky: `grey over ${city}` }),
  })
  return null
}

const UserMessage = () => (
  <MessagePrimitive.Root className="user">
    <MessagePrimitive.Content />
    <ActionBarPrimitive.Edit>Edit</ActionBarPrimitive.Edit>
    <Branches />
  </MessagePrimitive.Root>
)

const AssistantMessage = () => (
  <MessagePrimitive.Root className="assistant">
    <MessagePrimitive.Content components={{ tools: { Fallback: Call } }} />
    <ActionBarPrimitive.Reload>Reload</ActionBarPrimitive.Reload>
    <Branches />
  </MessagePrimitive.Root>
)

const EditComposer = () => (
  <ComposerPrimitive.Root className="edit">
    <ComposerPrimitive.Input />
    <ComposerPrimitive.Send>Send edit</ComposerPrimitive.Send>
  </ComposerPrimitive.Root>
)

const Branches = () => (
  <BranchPickerPrimitive.Root hideWhenSingleBranch>
    <BranchPickerPrimitive.Previous>Previous</BranchPickerPrimitive.Previous>
    <BranchPickerPrimitive.Next>Next</BranchPickerPrimitive.Next>
  </BranchPickerPrimitive.Root>
)

const Call = ({ toolName, result, approval, respondToApproval }) => (
  <pre>
    {toolName} {JSON.stringify(result)}
    {approval && approval.approved === undefined && (
      <>
        <button onClick={() => respondToApproval({ approved: true })}>Approve</button>
        <button onClick={() => respondToApproval({ approved: false, reason: 'not to Ann' })}>Deny</button>
      </>
    )}
  </pre>
)

createRoot(document.getElementById('chat')).render(<Provider />)
